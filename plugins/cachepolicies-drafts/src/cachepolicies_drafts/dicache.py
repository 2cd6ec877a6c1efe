"""DiCache (Bu et al., arXiv 2508.17356): the first blocks are a probe that is run on, if it says so."""

from __future__ import annotations

import math
from typing import ClassVar

from attrs import evolve, field, frozen
from attrs.validators import ge, instance_of, le
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Needs, RunInfo, Step
from cachepolicies_drafts._change import Why, relative_changes


@frozen
class _Seen:
    """What is known between the steps of a run.

    Attributes:
        probe: ``(B, ...)`` what left the first blocks at the last step.
        summed: for each deciding sample, the changes since all blocks ran last, that of the last step included.
    """

    probe: Tensor | None
    summed: tuple[float, ...]


@frozen
class DiCache(CachePolicy):
    """Run the first blocks at every step; run on while the changes of what leaves them sum up to the threshold.

    A step's change is ``mean|now - before| / mean|before|`` of what leaves the first blocks, against the step before.
    The changes are summed from the last step at which all blocks ran. Such a step goes on from the probe; no block runs
    twice.

    It reads the signal ``probe``: one number travels to the host at every step. It cuts at ``"blocks[m:]"``. The
    paper's stand-in is ``aligned``, the combination of the last two residuals that the probe points at: give
    ``substitute="aligned"``. It costs m blocks a step, and the memory of two residuals and three probes. It helps
    without calibration. What users run into: the first fifth of a run has to be computed, or the outline is lost.

    Published: FLUX ``probe=1``, threshold 0.4, after 20 % of the steps.

    Attributes:
        probe: m: how many blocks always run.
        threshold: of the sum, below which the others are reused; 0 computes everything.
        start_after: fraction of the steps, from the first, that are computed throughout.
    """

    name: ClassVar[str] = "dicache"
    knob: ClassVar[str] = "threshold"

    probe: int = field(default=1, validator=[instance_of(int), ge(1)])
    threshold: float = field(default=0.4, validator=[instance_of((int, float)), ge(0.0)])
    start_after: float = field(default=0.2, validator=[instance_of((int, float)), ge(0.0), le(1.0)])

    @property
    def site(self) -> str:
        """Behind the probe."""
        return f"blocks[{self.probe}:]"

    @property
    def needs(self) -> Needs:
        """What leaves the first blocks."""
        return Needs(signals=("probe",))

    @property
    def reuses(self) -> bool:
        """Unless the threshold is 0 or everything is computed throughout."""
        return self.threshold > 0.0 and self.start_after < 1.0

    def start(self, run: RunInfo) -> _Seen:
        """Return what is known: nothing yet."""
        return _Seen(None, (0.0,) * run.decisions)

    def decide(self, step: Step, state: _Seen) -> Decision:
        """Reuse where the sum is below the threshold."""
        count = step.run.decisions
        if state.probe is None or not self.reuses:
            return Decision.same(False, Why.NOTHING_YET, count)
        summed = self._summed(step, state)
        if step.in_first(self.start_after):
            return Decision.same(False, Why.WARM_UP, count)
        reuse = tuple(sum_ < self.threshold for sum_ in summed)
        tolerance = (float(self.threshold),) * count
        return Decision(reuse, tuple(Why.NEAR if near else Why.FAR for near in reuse), summed, tolerance, False)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: _Seen) -> _Seen:
        """Note the probe, and begin a new sum where all blocks ran."""
        if not self.reuses:
            return state
        summed = decision.score
        if summed is None:
            return _Seen(step.signals["probe"].clone(), (0.0,) * step.run.decisions)
        kept = tuple(sum_ if again else 0.0 for sum_, again in zip(summed, decision.reuse, strict=True))
        return evolve(state, probe=step.signals["probe"].clone(), summed=kept)

    def _summed(self, step: Step, state: _Seen) -> tuple[float, ...]:
        assert state.probe is not None
        changes = relative_changes(step, step.signals["probe"], state.probe)
        return tuple(
            math.inf if math.isnan(change) else before + change
            for before, change in zip(state.summed, changes, strict=True)
        )
