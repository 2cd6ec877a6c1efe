"""Hold: the last computed output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import frozen
from torch import Tensor

from cachepolicies._substitute import Refresh


@frozen
class Hold:
    """Return the last computed output unchanged, an extrapolation of order 0 (SenCache, arXiv 2602.24208, Alg. 1)."""

    name: ClassVar[str] = "hold"

    @property
    def history(self) -> int:
        """One refresh."""
        return 1

    def predict(self, t: float, history: Sequence[Refresh]) -> Tensor:
        """Return the newest output ``(B, ...)``; t does not matter."""
        return history[0].output
