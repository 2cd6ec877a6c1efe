"""The paper's score: sensitivity to the latent and to the noise level, added (arXiv 2602.24208, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import field, frozen

from cachepolicies._policy import Needs
from cachepolicies._settings import one_of
from cachepolicies.profiles.schema import Curve, Interpolation, Profile

SENSITIVITIES = ("alpha_x", "alpha_t")


@frozen(eq=False)
class Bound:
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

    profile: Profile = field(repr=False)
    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))
    _alpha_x: Curve = field(init=False, repr=False)
    _alpha_t: Curve = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.profile.require(self.name, SENSITIVITIES, "score")
        object.__setattr__(self, "_alpha_x", self.profile.curves["alpha_x"])
        object.__setattr__(self, "_alpha_t", self.profile.curves["alpha_t"])

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
        """Both sensitivities."""
        return Needs(curves=SENSITIVITIES)

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the bound at t; see `Score.at`."""
        t_r = refreshes[0]
        alpha_x = self._alpha_x.at(t_r, self.interpolation)
        alpha_t = self._alpha_t.at(t_r, self.interpolation)
        return alpha_x * displacement + alpha_t * abs(t - t_r)
