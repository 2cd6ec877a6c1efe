"""The schedule that forecasting methods are published with: the first steps, then every n-th."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge, instance_of

from cachepolicies import CachePolicy, Decision, Needs, Reason, RunInfo, Step


class IntervalReason(Reason):
    """Why a step is computed or not."""

    FIRST = "one of the first steps, which are always computed"
    LAST = "one of the last steps, which are always computed"
    KEY = "a step of the interval"
    BETWEEN = "a step between two of the interval"


@frozen
class Interval(CachePolicy):
    """Compute the first steps, from the last of these on every n-th, and the last ones; decide nothing else.

    Attributes:
        every: n; 1 computes everything.
        first: steps, from the first, that are computed throughout.
        last: steps at the end that are computed throughout.
    """

    every: int = field(default=5, validator=[instance_of(int), ge(1)])
    first: int = field(default=3, validator=[instance_of(int), ge(1)])
    last: int = field(default=0, validator=[instance_of(int), ge(0)])

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the declared timesteps only."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is computed."""
        return self.every > 1

    def start(self, run: RunInfo) -> tuple[IntervalReason, ...]:
        """Return why each step of the run is computed or not."""
        steps = run.num_steps or 0
        return tuple(self._reason(step, steps) for step in range(steps))

    def decide(self, step: Step, state: tuple[IntervalReason, ...]) -> Decision:
        """Reuse between the steps of the interval."""
        reason = IntervalReason.FIRST if step.index is None else state[step.index]
        return Decision.same(reason is IntervalReason.BETWEEN, reason, step.run.decisions)

    def _reason(self, step: int, steps: int) -> IntervalReason:
        if step < self.first:
            return IntervalReason.FIRST
        if step >= steps - self.last:
            return IntervalReason.LAST
        key = (step - self.first + 1) % self.every == 0
        return IntervalReason.KEY if key else IntervalReason.BETWEEN
