"""A tolerance as a curve over t."""

from __future__ import annotations

import math
from itertools import pairwise

from attrs import field, frozen

from cachepolicies.base.converters import floats
from cachepolicies.base.curves import PiecewiseLinear
from cachepolicies.base.errors import InputError, ProfileError


@frozen
class ToleranceCurve:
    """eps(t), linear in t between its points, constant beyond the ends.

    Attributes:
        t: M noise levels, strictly decreasing.
        epsilon: the tolerance there, RMS change of the output, finite and >= 0.
        margin: by how much, as a natural logarithm, the score of the plan's trajectory keeps away from the tolerance at
            every step that it decides; ``None`` where the curve follows no plan.

    Raises:
        ProfileError: a number is out of range or not finite, or the lengths differ.
    """

    t: tuple[float, ...] = field(converter=floats)
    epsilon: tuple[float, ...] = field(converter=floats)
    margin: float | None = None
    _line: PiecewiseLinear = field(init=False, repr=False, eq=False)

    @_line.default
    def _rising_in_t(self) -> PiecewiseLinear:
        return PiecewiseLinear(self.t[::-1], self.epsilon[::-1])

    def __attrs_post_init__(self) -> None:
        if not self.t or len(self.t) != len(self.epsilon):
            raise ProfileError(
                f"a tolerance curve has {len(self.t)} values of t and {len(self.epsilon)} of epsilon; expected equally "
                "many, at least one"
            )
        if not all(math.isfinite(t) for t in self.t) or any(later >= t for t, later in pairwise(self.t)):
            raise ProfileError(f"a tolerance curve needs finite, strictly decreasing t, got {self.t}")
        if not all(0 <= value < math.inf for value in self.epsilon):
            raise ProfileError(f"a tolerance is finite and >= 0, but the curve has {self.epsilon}")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise ProfileError(f"the margin of a tolerance curve is {self.margin}, expected a finite number >= 0")

    def at(self, t: float) -> float:
        """Return the tolerance at t; at a point its own value, without rounding: a plan may hang on it.

        Raises:
            InputError: t is NaN.
        """
        if t != t:
            raise InputError("a tolerance curve cannot be read at t = nan; check the t that the sampler passes")
        return self._line.at(t)
