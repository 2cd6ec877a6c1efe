"""A sharper score: the two changes partly cancel along a trajectory, and calibration knows by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen

from cachepolicies._policy import Needs
from cachepolicies._settings import one_of
from cachepolicies.profiles.schema import Curve, Interpolation, Profile
from cachepolicies.scores.bound import SENSITIVITIES


@frozen(eq=False)
class Correlated:
    """``S^2 = a^2 + b^2 + 2 rho(t_r) a b`` with ``a = alpha_x(t_r) * displacement``, ``b = alpha_t(t_r) * |t - t_r|``.

    ``rho`` is the calibrated correlation between the change that the latent's move makes and the one that the noise
    level's makes. With rho = 1 this is `Bound`, which it never exceeds.

    Attributes:
        profile: has the curves ``alpha_x``, ``alpha_t`` and ``rho``.
        interpolation: how they are read between calibrated timesteps.

    Raises:
        NeedsError: the profile lacks a curve.
        SettingsError: another interpolation.
    """

    name: ClassVar[str] = "correlated"

    profile: Profile = field(repr=False)
    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))
    _alpha_x: Curve = field(init=False, repr=False)
    _alpha_t: Curve = field(init=False, repr=False)
    _rho: Curve = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.profile.require(self.name, (*SENSITIVITIES, "rho"), "score")
        object.__setattr__(self, "_alpha_x", self.profile.curves["alpha_x"])
        object.__setattr__(self, "_alpha_t", self.profile.curves["alpha_t"])
        object.__setattr__(self, "_rho", self.profile.curves["rho"])

    @property
    def order(self) -> int:
        """The newest refresh only."""
        return 0

    @property
    def growth(self) -> float:
        """First order: 1."""
        return 1.0

    @property
    def needs(self) -> Needs:
        """Both sensitivities and their correlation."""
        return Needs(curves=(*SENSITIVITIES, "rho"))

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the score at t; see `Score.at`."""
        t_r = refreshes[0]
        a = self._alpha_x.at(t_r, self.interpolation) * displacement
        b = self._alpha_t.at(t_r, self.interpolation) * abs(t - t_r)
        rho = min(1.0, max(-1.0, self._rho.at(t_r, self.interpolation)))
        # As the sum of two squares that cannot be negative: a^2 + b^2 - 2ab rounds below 0.
        return math.sqrt((a - b) ** 2 + 2.0 * (1.0 + rho) * a * b)
