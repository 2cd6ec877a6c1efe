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
    def order(self) -> int:
        """0: the error grows with the distance from the last refresh."""
        return 0

    @property
    def history(self) -> int:
        """One refresh."""
        return 1

    @property
    def guard(self) -> float | None:
        """``None``: what was evaluated is always in range."""
        return None

    def time(self, t: float) -> float:
        """Return t itself, in which nothing is extrapolated."""
        return t

    def coefficients(self, t: float, refreshes: Sequence[float]) -> tuple[float, ...]:
        """Return the weight 1 of the newest output."""
        return (1.0,)

    def predict(self, t: float, history: Sequence[Refresh]) -> Tensor:
        """Return the newest output ``(B, ...)``; t does not matter."""
        return history[0].output
