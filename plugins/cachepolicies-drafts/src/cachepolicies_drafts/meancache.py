"""MeanCache (Gao et al., arXiv 2601.19961): steps of a plan; between them the velocity follows the path's mean."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

from attrs import field, frozen

from cachepolicies import CachePolicy, Decision, Needs, PolicySettings, Reason, RunInfo, SettingsError, Setup, Step
from cachepolicies_drafts.mean_velocity import LONGEST, MeanVelocity

PLANS: Mapping[int, tuple[int, ...]] = {
    10: (0, 1, 3, 7, 14, 21, 28, 35, 42, 49),
    17: (*range(9), 10, 17, 24, 31, 38, 45, 48, 49),
    25: (*range(17), 24, 32, 40, 43, 45, 47, 48, 49),
}
"""The plans published for Qwen-Image, of 50 steps, by the number of steps that are computed."""

STEPS = 50
"""Of the published plans."""


class Why(Reason):
    """Why a step is computed or not."""

    PLANNED = "a step of the plan"
    BETWEEN = "a step between two of the plan"


def _as_steps(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else tuple(value)


@frozen
class MeanCache(PolicySettings):
    """Compute the steps of a plan; in between, continue the velocity along the path so far.

    What stands in is `MeanVelocity`, the mean velocity of the step ahead: it comes with the policy. Predicted
    velocities are logged as computed ones are. How many steps back it looks, K, is a choice for every edge of the plan,
    from one computed step to the next.

    It reads nothing but the number of the step. It cuts at the site ``"output"``; published is the velocity behind
    classifier-free guidance, which a denoiser that guides inside returns. See `MeanVelocity` for pipelines. It costs
    the memory of K + 1 outputs and latents for each branch. It helps in flow matching with many steps, where few are
    computed: a straight path needs few, and the mean over several steps is smoother than a slope between two. What
    users run into: the plans are made for 50 steps of one model, and a plan for another number of steps is another
    plan; in bfloat16 the differences of latents are coarse.

    Published for Qwen-Image, 50 steps, 10, 17 or 25 of them computed, from a shortest path that keeps peaks of the
    error low: the plans here. Which K, from 1 to 6, was chosen for which of their edges is not known here; 3 stands for
    all of them until others are given.

    Attributes:
        plan: 10, 17 or 25 for a published plan of 50 steps; or the steps to compute, rising from 0.
        window: K of all edges; or one for each step of the plan, that of the steps which are skipped behind it.
    """

    name: ClassVar[str] = "meancache"
    site: ClassVar[str] = "output"

    plan: int | tuple[int, ...] = field(default=17, converter=_as_steps)
    window: int | tuple[int, ...] = field(default=3, converter=_as_steps)

    def __attrs_post_init__(self) -> None:
        plan, windows = self.plan, (self.window,) if isinstance(self.window, int) else self.window
        if isinstance(plan, tuple):
            numbers = all(type(step) is int for step in plan)
            if not numbers or plan[:1] != (0,) or any(after <= before for before, after in pairwise(plan)):
                raise SettingsError(f"meancache: plan is {plan}; give the steps to compute, rising from step 0")
        elif type(plan) is not int or plan not in PLANS:
            known = ", ".join(map(str, PLANS))
            raise SettingsError(
                f"meancache: plan is {plan!r}; published plans compute {known} of {STEPS} steps; or give the steps to "
                "compute, (0, 1, 3, 7)"
            )
        if any(type(window) is not int or not 1 <= window <= LONGEST for window in windows):
            raise SettingsError(f"meancache: window is {self.window!r}; give numbers from 1 to {LONGEST}")
        if isinstance(self.window, tuple) and len(self.window) != len(self.steps):
            raise SettingsError(
                f"meancache: window has {len(self.window)} entries, and the plan {len(self.steps)} steps; give one for "
                "each, or one number"
            )

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps to compute."""
        return PLANS[self.plan] if isinstance(self.plan, int) else self.plan

    @property
    def substitute(self) -> MeanVelocity:
        """The mean velocity, with K of every edge."""
        if isinstance(self.window, int):
            return MeanVelocity(self.window)
        return MeanVelocity(self.window[0], tuple(zip(self.steps, self.window, strict=True)))

    def resolve(self, setup: Setup) -> FollowsEdges:
        """Return the policy that follows the plan.

        Raises:
            SettingsError: something else is to stand in, or the site is inside of the network.
        """
        if not isinstance(setup.substitute, MeanVelocity):
            raise SettingsError(
                f"meancache goes with the substitute 'meanvelocity', and {setup.substitute.name!r} was given; leave it "
                "out, or use policy='schedule' with these steps"
            )
        site = setup.site
        if site is not None and (site.modules or site.remembers_residuals):
            raise SettingsError(
                f"meancache cuts the velocity that the denoiser returns, and site {site.name!r} is inside of the "
                "network; leave the site out, or use policy='schedule' with these steps"
            )
        return FollowsEdges(self.steps, STEPS if isinstance(self.plan, int) else None)


@frozen
class FollowsEdges(CachePolicy):
    """`MeanCache` on a site.

    Attributes:
        steps: to compute, rising.
        num_steps: of the run that they are for; ``None`` for any that has the last of them.
    """

    name: ClassVar[str] = "meancache"

    steps: tuple[int, ...]
    num_steps: int | None = None

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the run."""
        return Needs(run_length=True)

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the steps to compute.

        Raises:
            SettingsError: the run has another number of steps than the plan.
        """
        count = run.num_steps
        if self.num_steps is not None and count != self.num_steps:
            raise SettingsError(
                f"meancache: the published plans are for {self.num_steps} steps, and the run has {count}; give the "
                "steps to compute, plan=(0, 1, 3, ...)"
            )
        if count is not None and self.steps[-1] >= count:
            raise SettingsError(f"meancache: the plan has step {self.steps[-1]}, and the run {count} steps only")
        return frozenset(self.steps)

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Compute the steps of the plan."""
        planned = step.index in state
        return Decision.same(not planned, Why.PLANNED if planned else Why.BETWEEN, step.run.decisions)
