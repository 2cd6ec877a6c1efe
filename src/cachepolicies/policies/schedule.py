"""Schedule: evaluate at the steps of a plan, the same for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeAlias

from attrs import Attribute, field, frozen
from attrs.validators import optional

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import plain, positive_int, refuse
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.planning.fits import check_planned_for
from cachepolicies.policies._filling import positions

if TYPE_CHECKING:
    from cachepolicies.planning.plan_record import Plan

_ROUNDING = 1e-5
"""Timesteps closer than this fraction of the largest are the same: samplers keep theirs in float32."""

_PlanOrPath: TypeAlias = "Plan | str | Path"


def _as_steps(values: Any) -> Any:
    if values is None or isinstance(values, (str, bytes)):
        return values
    values = values.tolist() if hasattr(values, "tolist") else values
    return tuple(plain(value) for value in values) if isinstance(values, (Sequence, set, frozenset, range)) else values


def _steps(instance: object, attribute: Attribute[Any], value: Any) -> None:
    positions(instance, attribute, value)
    if not value or value[0] != 0:
        refuse(instance, attribute, value, "a sequence of steps that begins with step 0, where nothing is cached yet")
    for before, after in pairwise(value):
        if after <= before:
            refuse(instance, attribute, value, f"a rising sequence of steps, but {after} follows {before}")


def _show(value: object) -> str:
    return repr(value) if value is None or isinstance(value, (str, PathLike)) else "Plan(...)"


class ScheduleReason(Reason):
    """Why it evaluates or reuses."""

    EVALUATION = "scheduled evaluation"
    REUSE = "scheduled reuse"


@frozen
class Schedule(PolicySettings):
    """Evaluate a fixed set of steps, from a plan or given. Set exactly one of ``plan`` and ``refreshes``.

    A decision looks at the number of the step and at nothing else: no tensor, no host synchronisation, and the same on
    every rank. Steps are counted by noise level in the declared timesteps: both evaluations that a Heun sampler makes
    at one level follow that step.

    A plan serves the timesteps and the substitute that it was made for; anything else is refused rather than guessed.

    Attributes:
        plan: a `cachepolicies.planning.Plan`, or the path of one.
        refreshes: the steps to evaluate, rising, step 0 first.
        num_steps: number of steps that ``refreshes`` is for; a run of another length is refused. Without it any run
            is taken that has the last of these steps.

    Raises:
        SettingsError: not exactly one of plan and refreshes is given, or they do not go together.
        PlanError: the file of the plan cannot be read.
    """

    name: ClassVar[str] = "schedule"

    plan: _PlanOrPath | None = field(default=None, repr=_show)
    refreshes: tuple[int, ...] | None = field(default=None, converter=_as_steps, validator=optional(_steps))
    num_steps: int | None = field(default=None, converter=plain, validator=optional(positive_int))

    def __attrs_post_init__(self) -> None:
        if (self.plan is None) == (self.refreshes is None):
            raise SettingsError(
                "Schedule: set exactly one of plan and refreshes, got "
                f"plan={_show(self.plan)}, refreshes={self.refreshes}"
            )
        if self.refreshes is not None and self.num_steps is not None and self.refreshes[-1] >= self.num_steps:
            raise SettingsError(f"Schedule: refreshes has step {self.refreshes[-1]}, but num_steps is {self.num_steps}")
        self.read()

    def read(self) -> Plan | None:
        """Return the plan, read from its file if it is given as a path; ``None`` with ``refreshes``.

        Raises:
            SettingsError: it is no plan, or ``num_steps`` is given beside it.
            PlanError: the file cannot be read.
        """
        if self.plan is None:
            return None
        from cachepolicies.planning.io import read_plan
        from cachepolicies.planning.plan_record import Plan

        if self.num_steps is not None:
            raise SettingsError("Schedule: num_steps goes with refreshes; a plan knows the number of its steps")
        if isinstance(self.plan, (str, Path)):
            return read_plan(self.plan)
        if not isinstance(self.plan, Plan):
            raise SettingsError(
                f"Schedule: plan must be a Plan or the path of one, got {self.plan!r} ({type(self.plan).__name__})"
            )
        return self.plan

    def resolve(self, setup: Setup) -> FollowsSteps:
        """Return the policy that follows the steps.

        Raises:
            SettingsError: the plan was made for another substitute, or for another class of model than the profile's.
        """
        plan = self.read()
        if plan is None:
            return FollowsSteps(self.refreshes or (), num_steps=self.num_steps)
        check_planned_for(plan, setup, "Schedule")
        return FollowsSteps(plan.refreshes, plan.timesteps, len(plan.timesteps))


@frozen
class FollowsSteps(CachePolicy):
    """Evaluates these steps and no others: `Schedule`, resolved.

    Attributes:
        steps: to evaluate, rising.
        timesteps: t of every step of the plan, which the run has to have; ``None`` without a plan.
        num_steps: of the run, ``None`` for any that has the last of the steps.
    """

    name: ClassVar[str] = "schedule"

    steps: tuple[int, ...]
    timesteps: tuple[float, ...] | None = field(default=None, repr=False)
    num_steps: int | None = None

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the run only."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is evaluated; without a plan or ``num_steps`` that depends on the run."""
        return self.num_steps is None or len(self.steps) < self.num_steps

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the steps to evaluate.

        Raises:
            SettingsError: the run has another number of steps, or other timesteps than the plan.
        """
        count = run.num_steps
        if self.timesteps is None:
            if self.num_steps is not None and count != self.num_steps:
                raise SettingsError(f"Schedule: refreshes are for {self.num_steps} steps, but the run has {count}")
            if count is not None and self.steps[-1] >= count:
                last = self.steps[-1]
                raise SettingsError(f"Schedule: refreshes has step {last}, but the run has {count} steps only")
            return frozenset(self.steps)
        if count != len(self.timesteps):
            _refuse_run(f"{len(self.timesteps)} steps, and the run has {count}", "num_steps")
        slack = _ROUNDING * max(abs(t) for t in self.timesteps)
        visited = (run.first_t,) if run.timesteps is None else run.timesteps
        for index, (planned, t) in enumerate(zip(self.timesteps, visited, strict=False)):
            # Where only the number of steps was announced, t is compared as it comes.
            if abs(planned - t) > slack:
                _refuse_run(f"t = {planned:g} at step {index}, and the run has t = {t:g} there", "scheduler")
        return frozenset(self.steps)

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Reuse unless the step is one of those to evaluate.

        Raises:
            SettingsError: the run announced the number of its steps only, and t is not the plan's.
        """
        self.check(step)
        if step.index in state:
            return Decision.same(False, ScheduleReason.EVALUATION, step.run.decisions)
        return Decision.same(True, ScheduleReason.REUSE, step.run.decisions)

    def check(self, step: Step) -> None:
        """Check that t is the plan's, where the run announced the number of its steps only.

        Raises:
            SettingsError: it is not.
        """
        if self.timesteps is not None and step.run.timesteps is None and step.index is not None:
            self._check_level(self.timesteps, step.index, step.t)

    def _check_level(self, levels: tuple[float, ...], index: int, t: float) -> None:
        """Check that t lies in the plan's step ``index``: at its start, or before the next (a Heun step)."""
        slack = _ROUNDING * max(abs(level) for level in levels)
        end = levels[index + 1] if index + 1 < len(levels) else -float("inf")
        if not end - slack <= t <= levels[index] + slack:
            _refuse_run(f"t = {levels[index]:g} at step {index}, and the run has t = {t:g} there", "scheduler")


def _refuse_run(difference: str, option: str) -> NoReturn:
    hint = "; to follow a plan on other steps, use its tolerance: policy='sencache', epsilon='plan.json'"
    how = "make a plan for this run's" + (" number of steps" if option == "num_steps" else " scheduler")
    raise SettingsError(f"Schedule: the plan has {difference}; {how}{hint}")
