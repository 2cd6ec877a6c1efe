"""The score of an extrapolating substitute: its calibrated error against the distance from its refreshes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen, validate
from attrs.validators import optional

from cachepolicies.base.settings import positive
from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.score import Score
from cachepolicies.profiles.schema import Profile
from cachepolicies.scores.displacement import Displacement
from cachepolicies.scores.growth import Growth, measure

if TYPE_CHECKING:
    from cachepolicies.contracts.substitute import Extrapolation

TABLES = ("change", "displacement")
_REMEMBERED = 4096


@frozen(eq=False)
class Extrapolated(Score):
    """``S = kappa_p(t) * (prod_i |tau - tau_ri| / (p + 1)!) ** e * (displacement / D(t_r0, t)) ** b``, i from 0 to p.

    The product is the remainder of polynomial extrapolation through the refreshes r0, r1, ... in the substitute's own
    time tau. kappa_p and the exponent e are fitted to the errors that the substitute makes on the calibration runs
    (see `cachepolicies.scores.growth`); e = 1 is the textbook order, which a trained network seldom reaches. kappa_p is
    read in the middle between the newest refresh and t. The last factor adapts to the sample: its own displacement
    since the newest refresh over the calibrated mean D, as far as that told the errors of the calibration samples
    apart: the power b, between 0 and 1, is fitted with the law.

    While there are fewer refreshes than p + 1 the law of the lower order holds, that of order 0 in t.

    Attributes:
        profile: has the tables ``change`` and ``displacement``.
        substitute: follows `cachepolicies.contracts.substitute.Extrapolation`.
        exponent: e; fitted for every order where it is ``None``, else the one given for all.

    Raises:
        NeedsError: the profile lacks a table, or has too few steps.
        PolicyError: the substitute's weights do not sum to 1, so that its errors cannot be known from ``change``.
    """

    name: ClassVar[str] = "extrapolation"

    profile: Profile = field(repr=False)
    substitute: Extrapolation
    exponent: float | None = field(default=None, validator=optional(positive))
    _growths: tuple[Growth, ...] = field(init=False, repr=False)
    _moved: Displacement = field(init=False, repr=False)
    # A schedule's time may take tensors to compute, and a run asks for the same few again and again.
    _tau: Callable[[float], float] = field(init=False, repr=False)

    @_growths.default
    def _fitted_laws(self) -> tuple[Growth, ...]:
        validate(self)  # attrs would do so after the fit
        self.profile.require(self.name, TABLES, "score")
        orders = range(self.substitute.order + 1)
        return tuple(measure(self.profile, self.substitute, order, self.exponent) for order in orders)

    @_moved.default
    def _displacement_of_profile(self) -> Displacement:
        return Displacement(self.profile)

    @_tau.default
    def _remembered_time(self) -> Callable[[float], float]:
        return lru_cache(maxsize=_REMEMBERED)(self.substitute.time)

    @property
    def order(self) -> int:
        """The substitute's."""
        return self.substitute.order

    @property
    def growth(self) -> float:
        """``e * (p + 1)``."""
        return self._growths[-1].exponent * (self.order + 1)

    @property
    def needs(self) -> Needs:
        """What the errors and the displacement are read from."""
        return Needs(tables=TABLES)

    @property
    def laws(self) -> tuple[Growth, ...]:
        """The fitted laws of order 0 to p."""
        return self._growths

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the score at t; see `Score.at`."""
        newest = refreshes[0]
        if newest == t:
            return 0.0
        order, product = self._remainder(refreshes, t)
        law = self._growths[order]
        expected = law.error(0.5 * (t + newest), product)
        if not math.isfinite(displacement):
            return math.nan  # a power of 0 would make 1 of it
        moved = self._moved.at(newest, t)
        return expected * (displacement / moved) ** law.elasticity if moved > 0 else expected

    def _remainder(self, refreshes: Sequence[float], t: float) -> tuple[int, float]:
        """Return the order that this history allows, and the product of the distances from t."""
        tau = self._tau(t)
        seen: list[float] = []
        product = 1.0
        for refresh in refreshes[: len(self._growths)]:
            at = self._tau(refresh)
            distance = abs(tau - at)
            if not (0 < distance < math.inf):
                break  # no time is defined at one end of the run (log-SNR), or it does not tell the two apart
            if at in seen:
                continue
            seen.append(at)
            product *= distance
        if len(seen) < 2:
            return 0, abs(t - refreshes[0])
        return len(seen) - 1, product
