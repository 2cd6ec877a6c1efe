"""The policy: plan at set-up, then follow the plan."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from attrs import field, frozen
from attrs.validators import ge, in_, instance_of, optional
from torch import Tensor

from cachepolicies import (
    CachePolicy,
    Decision,
    Needs,
    NeedsError,
    Plan,
    PolicySettings,
    RunInfo,
    SettingsError,
    Setup,
    Step,
    plan,
)
from cachepolicies.planning import WeightKind
from cachepolicies.policies import Schedule
from cachepolicies_lemica.objective import LexicographicMinimax

_CURVES: dict[str, tuple[str, ...]] = {"measured": ("weight",), "bound": ("alpha_x",), "uniform": ()}
"""What the weights are made from."""


@frozen
class LeMiCa(PolicySettings):
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

    def resolve(self, setup: Setup) -> FollowsPlan:
        """Return the policy that follows the plan for this profile and substitute; these settings stay as they are.

        Raises:
            NeedsError: there is no profile, or it lacks what is planned from.
            SettingsError: there is no such plan (a budget above the number of steps, or one that ``max_reuse`` does not
                allow), or the substitute cannot be planned for.
        """
        if setup.profile is None:
            wanted = ", ".join(sorted({"change", *_CURVES[self.weights]}))
            raise NeedsError(
                f"policy {self.name!r} needs a profile with {wanted}, and none was given; measure one with "
                '`cachepolicies calibrate`, then pass profile="my-profile.json"'
            )
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
        return FollowsPlan(made, Schedule(plan=made).resolve(setup))


@frozen
class FollowsPlan(CachePolicy):
    """`LeMiCa`, resolved: follows its plan as the policy ``schedule`` does.

    Attributes:
        plan: what was solved for.
        schedule: follows it.
    """

    name: ClassVar[str] = "lemica"

    plan: Plan = field(repr=False)
    schedule: CachePolicy

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the run."""
        return self.schedule.needs

    @property
    def reuses(self) -> bool:
        """Unless the plan evaluates every step."""
        return self.schedule.reuses

    def start(self, run: RunInfo) -> Any:
        """Return the steps to evaluate.

        Raises:
            SettingsError: the run has other timesteps than the profile.
        """
        try:
            return self.schedule.start(run)
        except SettingsError as error:
            raise SettingsError(
                f"lemica plans for the profile's timesteps, and this run has others: {error}"
            ) from error

    def decide(self, step: Step, state: Any) -> Decision:
        """Reuse unless the step is one of those to evaluate."""
        return self.schedule.decide(step, state)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        """Nothing to note: the steps are fixed."""
        return self.schedule.observe(step, decision, output, state)
