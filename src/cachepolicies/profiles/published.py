"""A profile whose numbers a method's authors published."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies.base.errors import ProfileError
from cachepolicies.profiles.format import Array, Origin
from cachepolicies.profiles.measured import Profile


@frozen
class PublishedProfile(Profile):
    """What a method's authors published for a model. Whoever takes a `Profile` takes it.

    What the source does not say is unknown: ``timesteps`` may be empty, and ``prediction_type``, ``latent_shape``,
    ``scheduler`` and ``dtype`` ``None``. Tables of magnitude ratios may have another number of rows than there are
    steps, where those of the source have. The tables of changes, which only a calibration measures, are not there.

    Attributes:
        origin: ``"published"``; it is not given.
        stated_steps: number of steps that the numbers belong to, ``None`` if neither it nor the timesteps are stated.

    Raises:
        ProfileError: a field is out of range, unsorted, not finite or has the wrong shape.
    """

    _origin: ClassVar[Origin] = "published"

    def _check_own(self) -> None:
        if self.stated_steps is not None and self.stated_steps < 1:
            raise ProfileError(f"field 'stated_steps' is {self.stated_steps}, expected at least 1, or None")
        if self.timesteps and self.stated_steps not in (None, len(self.timesteps)):
            raise ProfileError(
                f"field 'stated_steps' is {self.stated_steps}, but there are {len(self.timesteps)} timesteps"
            )

    def _ratio_rows(self, table: Array) -> int:
        return max(len(table), 1) if table.ndim else self.num_steps

    def _measures_changes(self) -> bool:
        return False
