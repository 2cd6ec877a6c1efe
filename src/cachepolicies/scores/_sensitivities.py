"""What the scores that are read from calibrated sensitivities share: the curves, and that they are of first order."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from cachepolicies.base.errors import NeedsError
from cachepolicies.base.settings import one_of
from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.score import Score
from cachepolicies.contracts.setup import Setup
from cachepolicies.profiles.schema import RECALIBRATE, Curve, Interpolation, Profile


@frozen(eq=False)
class FromSensitivities(Score):
    """A score of the newest refresh only, from curves of the profile.

    Attributes:
        profile: has the curves.
        interpolation: how they are read between calibrated timesteps.

    Raises:
        NeedsError: the profile lacks a curve.
        SettingsError: another interpolation.
    """

    curves: ClassVar[tuple[str, ...]]

    profile: Profile = field(repr=False)
    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))
    _read: tuple[Curve, ...] = field(init=False, repr=False)

    @_read.default
    def _curves_of_profile(self) -> tuple[Curve, ...]:
        self.profile.require(self.name, self.curves, "score")
        return tuple(self.profile.curves[name] for name in self.curves)

    @property
    def needs(self) -> Needs:
        """The curves."""
        return Needs(curves=self.curves)

    def _values(self, t: float) -> list[float]:
        """Return what the curves say at t, in their order."""
        return [curve.at(t, self.interpolation) for curve in self._read]


def profile_for(score: str, setup: Setup) -> Profile:
    """Return the profile of a set-up.

    Raises:
        NeedsError: there is none.
    """
    if setup.profile is None:
        raise NeedsError(f"the score {score!r} needs a profile; {RECALIBRATE}")
    return setup.profile
