"""A sharper score: the two changes partly cancel along a trajectory, and calibration knows by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import one_of
from cachepolicies.contracts.score import ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import order_of
from cachepolicies.profiles.schema import Interpolation
from cachepolicies.scores._sensitivities import FromSensitivities, profile_for


@frozen(eq=False)
class Correlated(FromSensitivities):
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
    curves: ClassVar[tuple[str, ...]] = ("alpha_x", "alpha_t", "rho")

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the score at t; see `Score.at`."""
        t_r = refreshes[0]
        alpha_x, alpha_t, correlation = self._values(t_r)
        a, b = alpha_x * displacement, alpha_t * abs(t - t_r)
        rho = min(1.0, max(-1.0, correlation))
        # As the sum of two squares that cannot be negative: a^2 + b^2 - 2ab rounds below 0.
        return math.sqrt((a - b) ** 2 + 2.0 * (1.0 + rho) * a * b)


@frozen
class CorrelatedSettings(ScoreSettings):
    """The sharper score, for a substitute that holds: `Correlated`.

    Attributes:
        interpolation: how the curves are read between calibrated timesteps.
    """

    name: ClassVar[str] = "correlated"

    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))

    def resolve(self, setup: Setup) -> Correlated:
        """Return the score on the profile.

        Raises:
            NeedsError: there is no profile, or it lacks a curve.
            SettingsError: the substitute extrapolates.
        """
        profile = profile_for(self.name, setup)
        if (order_of(setup.substitute) or 0) > 0:
            raise SettingsError(
                f"the score 'correlated' predicts how far the output moves, which is the error of hold and not that of "
                f"the extrapolation {setup.substitute.name!r}; use score='substitute', or 'bound' to be on the safe "
                "side"
            )
        return Correlated(profile, self.interpolation)
