"""The contract of whoever looks on at one run, to learn from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from cachepolicies.contracts.policy import Decision
    from cachepolicies.contracts.step import Step
    from cachepolicies.engine.call import Call
    from cachepolicies.engine.invocation import Invocation


class Watch(ABC):
    """Looks on at one run. It changes nothing of what the run returns."""

    @abstractmethod
    def served(self, step: Step, decision: Decision, output: Tensor) -> None:
        """Take note of what flows on from a place.

        Args:
            step: what the policy was told.
            decision: as carried out.
            output: ``(B, ...)`` evaluated and substituted rows together; not to be changed or kept.
        """

    def called(self, call: Call, invocation: Invocation) -> int:
        """Look at a call once it is served; may evaluate the denoiser further, at other points.

        Returns:
            How many further evaluations that took; 0 unless it says otherwise.
        """
        return 0

    @abstractmethod
    def finished(self) -> None:
        """Take note that the run came to its end. A run that failed is never finished."""
