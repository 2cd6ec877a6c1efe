"""FasterCache (Lv et al., arXiv 2410.19355): attention by its own extrapolation, every n-th step, from a step on."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of, le

from cachepolicies import CachePolicy, Decision, Needs, Step
from cachepolicies_classics._reasons import Why
from cachepolicies_classics.last_change import LastChange


@frozen
class FasterCache(CachePolicy):
    """Compute every attention throughout a first part of the run, then at every n-th step; extrapolate between.

    The attention part of FasterCache; the part that leaves out the unconditional branch is ``cfg-cache``. What an
    attention returned at its last two computed steps, before the block's gate, is continued: ``F1 + w (F1 - F0)``.
    Extrapolated outputs never count among these two.

    It reads nothing but the number of the step. It cuts at the site ``"attention"``; ``last-change`` stands in, by
    default with w = 0.5. It costs the memory of two outputs for each attention, and branch. It helps with video models,
    whose attention costs most, and gets the small changes right that holding it loses. What users run into: in a run of
    few steps the last two computed outputs are far apart, and the extrapolation overshoots, most where n is above 2; a
    smaller w helps then.

    Published, steps, from step, n, w: Latte 50, 16, 2, 0.5; CogVideoX 50, 18, 3, 0.3; Open-Sora 1.2 30, 8, 2,
    ``last-change:weight=0.9,rising=(0.2333,0.9)``; Open-Sora-Plan 150, 45, 3, 0.3. Vchitect holds from step 31 on, n =
    2, ``substitute="hold"``. Step m of N is ``start_after=m/N``.

    Attributes:
        start_after: fraction of the steps, from the first, that are computed throughout.
        every: n: behind them, steps 0, n, 2 n, ... of the run are computed; 1 computes everything.
    """

    name: ClassVar[str] = "fastercache"
    site: ClassVar[str] = "attention"

    start_after: float = field(default=0.32, validator=[instance_of((int, float)), ge(0.0), le(1.0)])
    every: int = field(default=2, validator=[instance_of(int), ge(1)])

    @property
    def substitute(self) -> LastChange:
        """The last change, continued."""
        return LastChange()

    @property
    def needs(self) -> Needs:
        """The run length."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is computed."""
        return self.every > 1 and self.start_after < 1.0

    def decide(self, step: Step, state: None) -> Decision:
        """Extrapolate between the steps that are computed."""
        if step.in_first(self.start_after):
            return Decision.same(False, Why.ALWAYS, step.run.decisions)
        key = step.index is None or step.index % self.every == 0
        return Decision.same(not key, Why.KEY if key else Why.HELD, step.run.decisions)
