"""Hermite: the Taylor series with Hermite polynomials in the place of the powers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from attrs import Attribute, field, frozen

from cachepolicies.base.settings import non_negative_int, one_of, plain, positive
from cachepolicies.substitutes._extrapolation import Differences, Extrapolating, Weights, derivatives


@frozen(kw_only=True)
class Hermite(Extrapolating):
    """Continue every row by ``sum_i d_i scale^i H_i(scale x) / i!``, H_i the physicists' Hermite polynomials.

    This is HiCache (arXiv 2508.16984), TaylorSeer with damped and shifted powers. The authors count x in sampling
    steps; here x is in units of ``unit``, by default the distance between the last two refreshes, which a substitute
    knows without the run. The two differ from order 2 on, in the terms that do not vanish with x.

    The sum is no Taylor series: d_1 comes with 2 scale^2 x, which is x for ``scale = 1/sqrt(2)`` only. With any other
    scale the error is of order h, as that of hold, whatever ``order`` says; with that one it is of order h^2, also for
    ``order`` >= 2, whose term ``-scale^2 d_2`` stays where x is 0. What may make up for it is damping: a smaller
    ``scale`` extrapolates more cautiously. ``order + 1`` outputs are kept a branch.

    Attributes:
        order: order of the sum; 0 holds.
        scale: both the factor of the argument and that of the polynomials (the authors' range is 0.5 to 0.7).
        differences: ``"taylorseer"``, as the authors, or ``"newton"``; see `Taylor`.
        unit: what x is counted in, a distance on the axis; ``None`` for the distance between the last two refreshes.
    """

    name: ClassVar[str] = "hermite"

    order: int = field(default=2, converter=plain, validator=non_negative_int)
    scale: float = field(default=0.5, converter=plain, validator=positive)
    differences: Differences = field(default="taylorseer", validator=one_of("newton", "taylorseer"))
    unit: float | None = field(default=None, converter=plain)

    @unit.validator
    def _check_unit(self, attribute: Attribute[float | None], value: float | None) -> None:
        if value is not None:
            positive(self, attribute, value)

    def weights(self, now: float, points: Sequence[float]) -> Weights:
        """Return the weights of the sum."""
        last = points[0] - points[1]
        unit = last if self.unit is None else self.unit * last / abs(last)  # arrays too, see `many_coefficients`
        found = derivatives([point / unit for point in points], self.differences)
        basis = hermite_polynomials(self.scale * (now - points[0]) / unit, len(points))
        factors = [self.scale**i * value / math.factorial(i) for i, value in enumerate(basis)]
        return tuple(
            sum(factor * row[place] for factor, row in zip(factors, found, strict=True)) for place in range(len(points))
        )


def hermite_polynomials(x: float, count: int) -> list[float]:
    """Return H_0(x), ..., H_{count-1}(x), by ``H_{n+1}(x) = 2 x H_n(x) - 2 n H_{n-1}(x)``."""
    values = [1.0, 2.0 * x]
    for n in range(1, count - 1):
        values.append(2.0 * x * values[n] - 2.0 * n * values[n - 1])
    return values[:count]
