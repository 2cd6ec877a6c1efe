"""Taylor: a Taylor series with derivatives from finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen

from cachepolicies.base.settings import non_negative_int, one_of, plain
from cachepolicies.substitutes._extrapolation import Differences, Extrapolating, Weights, derivatives


@frozen(kw_only=True)
class Taylor(Extrapolating):
    """Continue every row by ``sum_i d_i x^i / i!``, x the distance from its last refresh.

    This is TaylorSeer (arXiv 2503.06923), at a site of your choice. With ``differences="newton"`` the d_i are the
    derivatives of the polynomial through the last ``order + 1`` outputs: the sum is that polynomial, its error of order
    h^(order + 1), and orders 1 and 2 are `Linear` and `Quadratic`. With ``"taylorseer"`` they are the repeated
    difference quotients of the paper and of its authors' code, in which d_1 belongs to the middle of the last distance
    and is used as if it belonged to its end: the error is of order h^2 for every order >= 1. ``order + 1`` outputs are
    kept a branch.

    Attributes:
        order: order of the series; 0 holds.
        differences: ``"newton"`` or ``"taylorseer"``.
    """

    name: ClassVar[str] = "taylor"

    order: int = field(default=1, converter=plain, validator=non_negative_int)
    differences: Differences = field(default="newton", validator=one_of("newton", "taylorseer"))

    def weights(self, now: float, points: Sequence[float]) -> Weights:
        """Return the weights of the series."""
        x, found = now - points[0], derivatives(points, self.differences)
        factors = [x**i / math.factorial(i) for i in range(len(points))]
        return tuple(
            sum(factor * row[place] for factor, row in zip(factors, found, strict=True)) for place in range(len(points))
        )
