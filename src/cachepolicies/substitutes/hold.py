"""Hold: the last computed output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import frozen
from torch import Tensor

from cachepolicies.contracts.substitute import Context, Extrapolation, Refresh


@frozen
class Hold(Extrapolation):
    """Return the last computed output unchanged, an extrapolation of order 0 (SenCache, arXiv 2602.24208, Alg. 1)."""

    name: ClassVar[str] = "hold"

    @property
    def order(self) -> int:
        """0: the error grows with the distance from the last refresh."""
        return 0

    def coefficients(self, t: float, refreshes: Sequence[float]) -> tuple[float, ...]:
        """Return the weight 1 of the newest output."""
        return (1.0,)

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return the newest output ``(B, ...)``; the present does not matter."""
        return history[0].output
