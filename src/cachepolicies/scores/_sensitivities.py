"""What the scores that are read from calibrated sensitivities share: the curves, and that they are of first order."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from cachepolicies._policy import Needs
from cachepolicies._settings import one_of
from cachepolicies.profiles.schema import Curve, Interpolation, Profile


@frozen(eq=False)
class FromSensitivities:
    """A score of the newest refresh only, from curves of the profile.

    Attributes:
        profile: has the curves.
        interpolation: how they are read between calibrated timesteps.

    Raises:
        NeedsError: the profile lacks a curve.
        SettingsError: another interpolation.
    """

    name: ClassVar[str]
    curves: ClassVar[tuple[str, ...]]

    profile: Profile = field(repr=False)
    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))
    _read: tuple[Curve, ...] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.profile.require(self.name, self.curves, "score")
        object.__setattr__(self, "_read", tuple(self.profile.curves[name] for name in self.curves))

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
        """The curves."""
        return Needs(curves=self.curves)

    def _values(self, t: float) -> list[float]:
        """Return what the curves say at t, in their order."""
        return [curve.at(t, self.interpolation) for curve in self._read]
