"""The policy: plan at set-up, then follow the plan."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, get_args

import attrs
from attrs import field, frozen
from attrs.validators import ge, in_, instance_of, optional
from torch import Tensor

from cachepolicies import Decision, Needs, NeedsError, Plan, RunInfo, SettingsError, Setup, Step, plan
from cachepolicies.planning import WeightKind
from cachepolicies.policies import Schedule
from cachepolicies_lemica.objective import LexicographicMinimax

_CURVES: dict[str, tuple[str, ...]] = {"measured": ("weight",), "bound": ("alpha_x",), "uniform": ()}
"""What the weights are made from."""


@frozen
class LeMiCa:
    """Evaluate where the worst stretch of reuses becomes least harmful (LeMiCa, arXiv 2511.00090).

    The schedule is solved for at set-up, for the profile and the substitute in use: a path through the graph whose
    edges are the stretches from one evaluation to the next, with the lexicographically smallest costs of edges sorted
    from the largest down; see `LexicographicMinimax`. Then it is followed as the policy ``schedule`` follows a plan:
    the same for every sample, no tensor is looked at, and a run with other timesteps than the profile's is refused.

    The paper's cost of an edge is the mean L1 change of the final output when that one stretch is reused, measured by
    sampling to the end once for every edge. Here it is the sum over the stretch of weight times error, both from the
    profile, so that it takes no further evaluation and serves any substitute. The paper's graph has as many evaluations
    as the budget says; here they are at most as many.

    Attributes:
        evaluations: budget: most evaluations of a run, from 1 to the number of calibrated steps.
        max_reuse: most reuses in a row, ``None`` without a limit; the paper's longest edge has one step more.
        weights: what an error of the output does to the sample: ``"measured"``, ``"bound"`` or ``"uniform"``, as in
            `cachepolicies.plan`.
    """

    name: ClassVar[str] = "lemica"

    evaluations: int = field(validator=[instance_of(int), ge(1)])
    max_reuse: int | None = field(default=None, validator=optional([instance_of(int), ge(0)]))
    weights: WeightKind = field(default="measured", validator=in_(get_args(WeightKind)))
    _plan: Plan | None = field(init=False, default=None, repr=False, eq=False)
    _schedule: Schedule | None = field(init=False, default=None, repr=False, eq=False)

    @property
    def plan(self) -> Plan | None:
        """The plan that is followed; ``None`` before set-up. A denoiser has its own: ``denoiser.policy.plan``."""
        return self._plan

    @property
    def needs(self) -> Needs:
        """What is planned from; once there is a plan, the run length."""
        if self._schedule is not None:
            return self._schedule.needs
        return Needs(curves=_CURVES[self.weights], tables={"change"}, run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless the plan evaluates every step."""
        return self._schedule is None or self._schedule.reuses

    def suit(self, setup: Setup) -> LeMiCa:
        """Return the policy with the plan for this profile and substitute.

        Raises:
            NeedsError: the profile lacks what is planned from.
            SettingsError: there is no such plan (a budget above the number of steps, or one that ``max_reuse`` does not
                allow), or the substitute cannot be planned for.
        """
        if setup.profile is None:
            return attrs.evolve(self)  # without a plan: ``needs`` says what is missing, in the usual words
        try:
            made = plan(
                setup.profile,
                self.evaluations,
                objective=LexicographicMinimax(),
                substitute=setup.substitute,
                max_reuse=self.max_reuse,
                weights=self.weights,
                scheduler=setup.scheduler if setup.profile.scheduler is None else None,
            )
        except SettingsError as error:
            raise SettingsError(f"{self!r} on profile {setup.profile.name!r}: {error}") from error
        suited = copy.copy(self)
        object.__setattr__(suited, "_plan", made)
        object.__setattr__(suited, "_schedule", Schedule(plan=made).suit(setup))
        return suited

    def start(self, run: RunInfo) -> Any:
        """Return the steps to evaluate.

        Raises:
            NeedsError: there is no plan, because ``suit`` was not called.
            SettingsError: the run has other timesteps than the profile.
        """
        try:
            return self._followed().start(run)
        except SettingsError as error:
            raise SettingsError(
                f"lemica plans for the profile's timesteps, and this run has others: {error}"
            ) from error

    def decide(self, step: Step, state: Any) -> Decision:
        """Reuse unless the step is one of those to evaluate."""
        return self._followed().decide(step, state)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        """Nothing to note: the steps are fixed."""
        return self._followed().observe(step, decision, output, state)

    def _followed(self) -> Schedule:
        if self._schedule is None:
            raise NeedsError("lemica has no plan: its method suit is called when a denoiser is set up, with a profile")
        return self._schedule
