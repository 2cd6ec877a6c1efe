"""Quadratic: the parabola through the last three computed outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import frozen

from cachepolicies.substitutes._extrapolation import Extrapolating, Weights, interpolating


@frozen(kw_only=True)
class Quadratic(Extrapolating):
    """Extrapolate along the parabola through the last three outputs of every row; the error is of order h^3.

    It gains on regular schedules and loses on irregular ones, where the last distances are short against the one that
    is bridged. It keeps three outputs a branch.
    """

    name: ClassVar[str] = "quadratic"

    @property
    def order(self) -> int:
        """2."""
        return 2

    def weights(self, now: float, points: Sequence[float]) -> Weights:
        """Return the weights of the parabola, or of the line through two points."""
        return interpolating(now, points)
