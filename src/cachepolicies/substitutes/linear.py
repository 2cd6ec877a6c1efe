"""Linear: the straight line through the last two computed outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import frozen

from cachepolicies.substitutes._extrapolation import Extrapolating, Weights, interpolating


@frozen(kw_only=True)
class Linear(Extrapolating):
    """Extrapolate along the straight line through the last two outputs of every row; the error is of order h^2.

    Under Euler steps in sigma this is the two-step Adams-Bashforth method with a variable step. It keeps two outputs a
    branch.
    """

    name: ClassVar[str] = "linear"

    @property
    def order(self) -> int:
        """1."""
        return 1

    def weights(self, now: float, points: Sequence[float]) -> Weights:
        """Return the weights of the line."""
        return interpolating(now, points)
