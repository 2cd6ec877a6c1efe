"""Depth schedule: evaluate the parts of the network that a plan in step and depth names, the same for every sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from attrs import field, frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.contracts.policy import CachePolicy, Decision, Grain, Needs, PolicySettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.engine.call import WHOLE
from cachepolicies.policies.schedule import FollowsSteps, ScheduleReason
from cachepolicies.substitutes.by_place import ByPlace
from cachepolicies.substitutes.resolve import same_substitute, substitute_on

if TYPE_CHECKING:
    from cachepolicies.planning.depth_record import DepthPlan

_PlanOrPath: TypeAlias = "DepthPlan | str | Path"


def _show(value: object) -> str:
    return repr(value) if isinstance(value, (str, Path)) else "DepthPlan(...)"


@frozen
class DepthSchedule(PolicySettings):
    """Evaluate the places of the network that a plan names, each at its own steps, and skip whole calls at others.

    A decision looks at the number of the step and the name of the place, at no tensor. The plan serves the timesteps,
    the places and the substitute that it was made for, which are taken from it where nobody names others.

    Attributes:
        plan: a `cachepolicies.planning.DepthPlan`, or the path of one.

    Raises:
        SettingsError: it is neither.
        PlanError: the file cannot be read.
    """

    name: ClassVar[str] = "depth-schedule"

    plan: _PlanOrPath = field(repr=_show)

    def __attrs_post_init__(self) -> None:
        self.read()

    def read(self) -> DepthPlan:
        """Return the plan, read from its file if it is given as a path.

        Raises:
            SettingsError: it is no plan.
            PlanError: the file cannot be read.
        """
        from cachepolicies.planning.depth_record import DepthPlan, read_depth_plan

        if isinstance(self.plan, (str, Path)):
            return read_depth_plan(self.plan)
        if not isinstance(self.plan, DepthPlan):
            raise SettingsError(
                f"DepthSchedule: plan must be a DepthPlan or the path of one, got {shown(self.plan)} "
                f"({type(self.plan).__name__}); a plan in steps alone goes to the policy 'schedule'"
            )
        return self.plan

    @property
    def site(self) -> str:
        """The output and the places of the plan."""
        return self.read().cut

    @property
    def substitute(self) -> str:
        """Those of the plan, for skipped calls and inside of computed ones."""
        return self.read().substitute

    def resolve(self, setup: Setup) -> FollowsPlaces:
        """Return the policy that follows the plan.

        Raises:
            SettingsError: the plan was made for another substitute, for other places than those of the site, or for
                another class of model than the profile's.
        """
        plan = self.read()
        profile, site = setup.profile, setup.site
        if profile is not None and profile.model.class_name != plan.source.model_class:
            raise SettingsError(
                f"DepthSchedule: the plan was made for a {plan.source.model_class}, and profile {profile.name!r} is of "
                f"a {profile.model.class_name}; plan with the profile in use"
            )
        places = (WHOLE, *(part.place for part in plan.parts))
        if site is not None and set(site.places) != set(places):
            odd = sorted(set(site.places) ^ set(places))
            raise SettingsError(
                f"DepthSchedule: the plan and site {site.name!r} do not have the same places, {odd[0]!r} is in one of "
                f"them only; run it at site={plan.cut!r} of the model that it was made for"
            )
        self._check_substitute(plan, setup)
        steps = {part.place: frozenset(part.steps) for part in plan.parts}
        clock = FollowsSteps(plan.calls, plan.timesteps, len(plan.timesteps))
        return FollowsPlaces({WHOLE: frozenset(plan.calls), **steps}, clock)

    def _check_substitute(self, plan: DepthPlan, setup: Setup) -> None:
        used, scheduler = setup.substitute, setup.scheduler
        planned = substitute_on(plan.substitute, scheduler, setup.profile)
        if (
            not isinstance(used, ByPlace)
            or not isinstance(planned, ByPlace)
            or not same_substitute(planned.output, used.output, plan.timesteps)
            or not same_substitute(planned.inside, used.inside, plan.timesteps)
        ):
            raise SettingsError(
                f"DepthSchedule: the plan was made for the substitute {plan.substitute!r}, and {used!r} is in use; "
                "leave it out, or give substitute=plan.substitute"
            )


@frozen
class FollowsPlaces(CachePolicy):
    """Evaluates each place at its steps and at no others: `DepthSchedule`, resolved.

    Attributes:
        steps: to evaluate, by place; ``""`` is the whole call.
        clock: checks the run against the timesteps of the plan.
    """

    name: ClassVar[str] = "depth-schedule"

    steps: Mapping[str, frozenset[int]]
    clock: FollowsSteps = field(repr=False)

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the run only."""
        return self.clock.needs

    @property
    def grain(self) -> Grain:
        """Place by place."""
        return "place"

    @property
    def reuses(self) -> bool:
        """Unless every place is evaluated at every step."""
        return any(len(steps) < len(self.clock.timesteps or ()) for steps in self.steps.values())

    def start(self, run: RunInfo) -> frozenset[int]:
        """Check the run; raises as the policy ``schedule`` does."""
        return self.clock.start(run)

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Reuse unless the step is one of the place's.

        Raises:
            SettingsError: the run announced the number of its steps only, and t is not the plan's.
        """
        self.clock.check(step)
        if step.index in self.steps[step.place]:
            return Decision.same(False, ScheduleReason.EVALUATION, step.run.decisions)
        return Decision.same(True, ScheduleReason.REUSE, step.run.decisions)
