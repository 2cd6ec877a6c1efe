"""The calibrated displacement of the latent between any two noise levels, on the calibrated grid and off it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from cachepolicies.base.curves import locate
from cachepolicies.base.errors import InputError
from cachepolicies.profiles.schema import Profile

Floats = NDArray[np.float64]


@frozen(eq=False)
class Displacement:
    """D(t_a, t_b), the RMS distance between the latents of one run at two noise levels.

    Calibration measured it between all pairs of steps. In between, it is not D that is interpolated but the secant
    speed ``V = D / |t_a - t_b|``, bilinearly, because V is smooth where D has a kink (at t_a = t_b); on that diagonal,
    where V is not defined, the mean of its two neighbours stands in. Beyond the calibrated steps V is constant.

    Attributes:
        profile: has the table ``displacement``.

    Raises:
        NeedsError: it has not.
    """

    profile: Profile = field(repr=False)
    _speed: Floats = field(init=False, repr=False)
    _mean: list[list[float]] = field(init=False, repr=False)
    _rising: tuple[float, ...] = field(init=False, repr=False)

    @_speed.default
    def _speed_of_samples(self) -> Floats:
        self.profile.require("displacement", ("displacement",), "table")
        return _secant_speed(self.profile.timesteps, self.profile.tables["displacement"].astype(np.float64))

    @_mean.default
    def _mean_speed(self) -> list[list[float]]:
        return cast("list[list[float]]", self._speed.mean(axis=2).tolist())

    @_rising.default
    def _negated_levels(self) -> tuple[float, ...]:
        return tuple(-t for t in self.profile.timesteps)

    def at(self, t_a: float, t_b: float) -> float:
        """Return the mean over the calibration samples, RMS; a few microseconds at most."""
        i, u = locate(self._rising, -t_a)  # the calibrated step before, and how far it is on the way to the next
        j, v = locate(self._rising, -t_b)
        first, second = self._mean[i], self._mean[i + 1] if u else self._mean[i]
        n = j + 1 if v else j
        upper = first[j] + v * (first[n] - first[j])
        lower = second[j] + v * (second[n] - second[j])
        return (upper + u * (lower - upper)) * abs(t_a - t_b)

    def per_sample(self, t_a: float, t_b: float) -> Floats:
        """Return ``(S,)`` float64, the displacement of each calibration sample."""
        return cast("Floats", self.table((t_a, t_b))[0, 1])

    def table(self, timesteps: Sequence[float]) -> Floats:
        """Return ``(M, M, S)`` float64 for M noise levels; for the calibrated ones, the calibrated table itself.

        Raises:
            InputError: a noise level is not finite.
        """
        levels = tuple(float(t) for t in timesteps)
        if levels == self.profile.timesteps:
            return self.profile.tables["displacement"].astype(np.float64)
        if not np.isfinite(levels).all():
            raise InputError(f"displacement: the timesteps {levels} are not all finite")
        places = [locate(self._rising, -t) for t in levels]
        low = np.array([i for i, _ in places])
        share = np.array([u for _, u in places])
        high = low + (share > 0)
        rows = self._speed[low] * (1 - share)[:, None, None] + self._speed[high] * share[:, None, None]
        speed = rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]
        gaps = np.abs(np.subtract.outer(levels, levels))
        return cast("Floats", speed * gaps[:, :, None])


def _secant_speed(levels: Sequence[float], table: Floats) -> Floats:
    """Return ``(N, N, S)``: displacement over distance in t, the diagonal filled from its neighbours."""
    count = len(levels)
    gaps = np.abs(np.subtract.outer(levels, levels))
    np.fill_diagonal(gaps, 1.0)
    speed = table / gaps[:, :, None]
    steps = np.arange(count - 1)
    neighbours = np.zeros((count, table.shape[2]))
    counted = np.zeros((count, 1))
    for at in (steps, steps + 1):
        neighbours[at] += speed[steps, steps + 1]
        counted[at] += 1
    diagonal = np.arange(count)
    speed[diagonal, diagonal] = neighbours / np.maximum(counted, 1)
    return speed
