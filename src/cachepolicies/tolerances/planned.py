"""Plan: the tolerance curve of a plan, with which SenCache's rule repeats it and adapts around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Attribute, field, frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import refuse
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule
from cachepolicies.planning.fits import check_planned_for
from cachepolicies.scores import score_name

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score
    from cachepolicies.planning.plan_record import Plan
    from cachepolicies.planning.tolerance_curve import ToleranceCurve


def _path(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, (str, Path)) and str(value)):
        refuse(instance, attribute, value, "the path of a plan, a .json file")


def _plan(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is None:
        return
    from cachepolicies.planning.plan_record import Plan

    if not isinstance(value, Plan):
        refuse(instance, attribute, value, "a plan, as cachepolicies.planning.plan returns it")


@frozen
class Planned(ToleranceSchedule):
    """The tolerance over t that a plan carries.

    On the mean of the calibration runs it gives the plan's own refreshes; a sample that moves faster or slower is
    refreshed sooner or later than planned. It is a function of t: a run with other timesteps than the plan's reads it
    in between, and has another number of evaluations.

    Attributes:
        path: file of the plan; read once, when the schedule is made.
        plan: the plan itself, instead of a path.

    Raises:
        PlanError: the file cannot be read or is not a valid plan.
        SettingsError: not exactly one of both is given, or the plan has no curve.
    """

    name: ClassVar[str] = "plan"

    path: str | Path | None = field(default=None, validator=_path)
    plan: Plan | None = field(default=None, validator=_plan, repr=False)

    def __attrs_post_init__(self) -> None:
        if (self.path is None) == (self.plan is None):
            raise SettingsError("Planned: give either path, the file of a plan, or plan, the plan itself")
        self.read()

    def read(self) -> tuple[Plan, ToleranceCurve]:
        """Return the plan and its curve, read from the file if a path is given.

        Raises:
            PlanError: the file cannot be read or is not a valid plan.
            SettingsError: the plan has no curve.
        """
        plan = self.plan if self.plan is not None else _load(self.path)
        if plan.tolerance is None:
            raise SettingsError(
                f"this plan has no tolerance curve: {plan.no_tolerance}. Its refreshes can still be followed with "
                "the policy 'schedule'"
            )
        return plan, plan.tolerance

    @property
    def curve(self) -> ToleranceCurve:
        """eps(t)."""
        return self.read()[1]

    def resolve(self, setup: Setup) -> CurveOfPlan:
        """Return the curve, if the plan was made for this model class and this substitute.

        Raises:
            SettingsError: it was made for others.
        """
        plan, curve = self.read()
        check_planned_for(plan, setup, "Planned")
        return CurveOfPlan(curve, plan.max_reuse)

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the curve as a function of the step; see `CurveOfPlan.start`."""
        return self.resolve(setup).start(run, setup, score, max_reuse)


@frozen
class CurveOfPlan(ToleranceSchedule):
    """The tolerance curve of a plan: `Planned`, resolved.

    Attributes:
        curve: eps(t).
        max_reuse: the plan's own limit, ``None`` for none.
    """

    name: ClassVar[str] = "plan"

    curve: ToleranceCurve
    max_reuse: int | None = None

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the curve as a function of the step.

        Raises:
            SettingsError: the policy compares with another score than the one that the curve was fitted to.
        """
        fitted = score_name(setup.substitute)
        if score.name != fitted:
            raise SettingsError(
                f"Planned: the plan's tolerance was fitted to the score {fitted!r} of substitute "
                f"{setup.substitute.name!r}, and the policy compares it with {score.name!r}; leave score='substitute', "
                "or use a tolerance that is solved for the score in use, such as 'optimal:nfe=22'"
            )
        curve = self.curve

        def tolerance(step: Step) -> float:
            return curve.at(step.t)

        return tolerance


def _load(path: str | Path | None) -> Plan:
    from cachepolicies.planning.io import read_plan

    assert path is not None
    return read_plan(path)
