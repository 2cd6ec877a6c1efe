"""FORA (Selvaraju et al., arXiv 2407.01425): every attention and every MLP is computed at every n-th step only."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of

from cachepolicies import CachePolicy, Decision, Needs, RunInfo, Step
from cachepolicies_classics._reasons import Why


@frozen
class FORA(CachePolicy):
    """Compute attention and MLP of every block at the first step and at every n-th, counted from the last; else hold.

    What an attention or an MLP returned, before the block's gate, is held; the gate is that of the current t.
    Embedding, norms, modulation and head run at every step.

    It reads nothing but the number of the step. It cuts at the site ``"attention+mlp"``; ``hold`` stands in. It costs
    the memory of one output for each attention and MLP, and branch. It helps where all of a network is expensive and
    nothing is known of it: there is nothing to calibrate. Users of fixed intervals find that the first steps, where the
    picture is laid out, suffer from them most, and that few-step models leave nothing to skip.

    Published for DiT-XL/2 at 512 pixels, 250 steps of DDIM and DDPM, guidance 1.5: ``every=3``.

    Attributes:
        every: n; 1 computes everything.
    """

    name: ClassVar[str] = "fora"
    site: ClassVar[str] = "attention+mlp"

    every: int = field(default=3, validator=[instance_of(int), ge(1)])

    @property
    def needs(self) -> Needs:
        """The run length: steps are counted from the last."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is computed."""
        return self.every > 1

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the steps at which everything is computed."""
        steps = run.num_steps or 0
        return frozenset({0, *range(steps - 1, -1, -self.every)})

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Hold between the steps at which everything is computed."""
        key = step.index in state
        return Decision.same(not key, Why.KEY if key else Why.HELD, step.run.decisions)
