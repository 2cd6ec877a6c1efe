"""Never: evaluate at every call, the baseline of every comparison."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from cachepolicies._policy import Decision, Needs
from cachepolicies._step import RunInfo, Step


@frozen
class Never:
    """Never reuse: the wrapped denoiser is bit for bit the bare one, with a trace."""

    name: ClassVar[str] = "never"

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    @property
    def reuses(self) -> bool:
        """Never."""
        return False

    def start(self, run: RunInfo) -> None:
        """Return no state."""
        return None

    def decide(self, step: Step, state: None) -> Decision:
        """Evaluate every sample."""
        return Decision.same(False, "policy never reuses", step.run.decisions)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: None) -> None:
        """Nothing to note."""
        return None
