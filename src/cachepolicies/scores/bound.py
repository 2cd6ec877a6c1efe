"""The paper's score: sensitivity to the latent and to the noise level, added (arXiv 2602.24208, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen

from cachepolicies.base.settings import one_of
from cachepolicies.contracts.score import ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.profiles.schema import Interpolation
from cachepolicies.scores._sensitivities import FromSensitivities, profile_for


@frozen(eq=False)
class Bound(FromSensitivities):
    """``S = alpha_x(t_r) * displacement + alpha_t(t_r) * |t - t_r|``, r the newest refresh.

    A first-order bound on the change of the output; it is reached where both changes point the same way. The
    sensitivities are those at the refresh, as in the authors' code.

    Attributes:
        profile: has the curves ``alpha_x`` and ``alpha_t``.
        interpolation: how they are read between calibrated timesteps.

    Raises:
        NeedsError: the profile lacks a curve.
        SettingsError: another interpolation.
    """

    name: ClassVar[str] = "bound"
    curves: ClassVar[tuple[str, ...]] = ("alpha_x", "alpha_t")

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the bound at t; see `Score.at`."""
        t_r = refreshes[0]
        alpha_x, alpha_t = self._values(t_r)
        return alpha_x * displacement + alpha_t * abs(t - t_r)


@frozen
class BoundSettings(ScoreSettings):
    """The paper's score, whatever the substitute: `Bound`.

    Attributes:
        interpolation: how the curves are read between calibrated timesteps.
    """

    name: ClassVar[str] = "bound"

    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))

    def resolve(self, setup: Setup) -> Bound:
        """Return the score on the profile.

        Raises:
            NeedsError: there is no profile, or it lacks a curve.
        """
        return Bound(profile_for(self.name, setup), self.interpolation)
