"""The path of the output along the calibration runs, as an axis to extrapolate in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from attrs import frozen

from cachepolicies.base.curves import segment
from cachepolicies.base.errors import NeedsError

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile


@frozen
class OutputPath:
    """How far the output has gone from the first step to t, summed step by step: the arc length of its path.

    On this axis a line through two outputs reaches as far as the outputs went on the calibration runs, also where
    they move much faster at one end of the run than in its middle.

    Attributes:
        t: ``(N,)`` noise levels, rising.
        length: ``(N,)`` RMS, mean over the calibration samples; it falls as t rises.
    """

    t: tuple[float, ...]
    length: tuple[float, ...]

    @classmethod
    def of(cls, profile: Profile) -> OutputPath:
        """Return the path of a profile with the table ``change``.

        Raises:
            NeedsError: the profile has no such table, or fewer than two steps.
        """
        change = profile.tables.get("change")
        if change is None or len(profile.timesteps) < 2:
            raise NeedsError(
                f"time='path' needs the table 'change' of at least two steps, which profile {profile.name!r} does not "
                "have; calibrate one with `cachepolicies calibrate`, or use another time"
            )
        moved = change.mean(axis=2).diagonal(1).tolist()
        length = tuple(accumulate(moved, initial=0.0))
        return cls(tuple(reversed(profile.timesteps)), tuple(reversed(length)))

    @classmethod
    def of_steps(cls, timesteps: Sequence[float]) -> OutputPath:
        """Return the path on which every step of a run is as long as any other: at t it is the number of the step.

        Args:
            timesteps: of the run, at least two, in order of visit, without repeats.
        """
        levels = sorted((t, float(step)) for step, t in enumerate(timesteps))
        return cls(tuple(t for t, _ in levels), tuple(step for _, step in levels))

    def at(self, t: float) -> float:
        """Return the length at t, linear between the calibrated levels and beyond them with the slope of the end."""
        before = segment(self.t, t)
        low, high = self.t[before : before + 2]
        start, end = self.length[before : before + 2]
        return start + (end - start) * (t - low) / (high - low)
