"""FirstBlockCache (ParaAttention, diffusers): the first block always runs, and tells whether the others have to."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Needs, RunInfo, Step
from cachepolicies_drafts._change import Why, relative_changes


@frozen
class FirstBlock(CachePolicy):
    """Reuse what the blocks behind the first have added while what the first adds has hardly changed.

    What the first block adds now is compared with what it added when all blocks ran last: ``mean|now - then| /
    mean|then|``, reused up to the threshold.

    It reads the signal ``prefix``: one number travels to the host at every step. It cuts at the site ``"blocks[1:]"``;
    ``hold`` stands in. It costs one block a step, and the memory of what the others add and what the first added. It
    helps without any calibration. What users run into: the threshold means something else for every model and every
    number of steps; the first block of some models moves little while the rest moves much.

    Published: ``threshold=0.05`` is the default of diffusers.

    Attributes:
        threshold: largest relative change at which the others are reused; 0 computes everything.
    """

    name: ClassVar[str] = "first-block"
    site: ClassVar[str] = "blocks[1:]"
    knob: ClassVar[str] = "threshold"

    threshold: float = field(default=0.05, validator=[instance_of((int, float)), ge(0.0)])

    @property
    def needs(self) -> Needs:
        """What the first block has added."""
        return Needs(signals=("prefix",))

    @property
    def reuses(self) -> bool:
        """Unless the threshold is 0."""
        return self.threshold > 0.0

    def start(self, run: RunInfo) -> Tensor | None:
        """Return what the first block added when all ran last: nothing yet."""
        return None

    def decide(self, step: Step, state: Tensor | None) -> Decision:
        """Reuse where the change is not above the threshold."""
        if state is None or not self.reuses:
            return Decision.same(False, Why.NOTHING_YET, step.run.decisions)
        changes = relative_changes(step, step.signals["prefix"], state)
        reuse = tuple(change <= self.threshold for change in changes)
        tolerance = (float(self.threshold),) * len(changes)
        return Decision(reuse, tuple(Why.NEAR if near else Why.FAR for near in reuse), changes, tolerance, False)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Tensor | None) -> Tensor | None:
        """Note what the first block added where all ran."""
        return step.merge(state, step.signals["prefix"], decision.reuse) if self.reuses else None
