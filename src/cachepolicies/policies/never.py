"""Never: evaluate at every call, the baseline of every comparison."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies.contracts.policy import CachePolicy, Decision
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.step import Step


class NeverReason(Reason):
    """Why it evaluates."""

    NEVER = "policy never reuses"


@frozen
class Never(CachePolicy):
    """Never reuse: the wrapped denoiser is bit for bit the bare one, with a trace."""

    name: ClassVar[str] = "never"

    @property
    def reuses(self) -> bool:
        """Never."""
        return False

    def decide(self, step: Step, state: None) -> Decision:
        """Evaluate every sample."""
        return Decision.same(False, NeverReason.NEVER, step.run.decisions)
