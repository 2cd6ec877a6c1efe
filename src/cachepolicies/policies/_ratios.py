"""MagCache's magnitude ratios of one stream, read by the step's place in the run or by the noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol, TypeAlias

from attrs import field, frozen

from cachepolicies.base.curves import PiecewiseLinear
from cachepolicies.base.errors import NeedsError, SettingsError

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

ALL_STREAMS = ""
"""Name of the curve that serves every stream."""

Position: TypeAlias = tuple[float, int]
"""Where a run is: t, and the step's index in the declared run (-1 where the run was not declared)."""


class RatioCurve(Protocol):
    """How the size of the residual changes along a run."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Entry k is the ratio of step k to step k - 1 of the calibrated run."""
        ...

    def between(self, before: Position, now: Position, num_steps: int) -> float:
        """Return the size at ``now`` over the size at ``before``; a step passed over counts, no step is 1."""
        ...

    def position(self, now: Position, num_steps: int) -> int:
        """Return the entry of the table that is nearest to ``now``."""
        ...


@frozen
class ByIndex:
    """Nearest entry by the step's place in the run, as in the authors' code: index ``round(i (len - 1) / (N - 1))``.

    Attributes:
        ratios: entry k is the ratio of step k to step k - 1 of the calibrated run.
    """

    ratios: tuple[float, ...]

    def between(self, before: Position, now: Position, num_steps: int) -> float:
        """Multiply the ratios of the steps from ``before``, excluded, to ``now``, included."""
        return math.prod(self._ratio(index, num_steps) for index in range(before[1] + 1, now[1] + 1))

    def position(self, now: Position, num_steps: int) -> int:
        """Scale the index to the table; halves go to the even neighbour."""
        return round(now[1] * (len(self.ratios) - 1) / (num_steps - 1)) if num_steps > 1 else 0

    def _ratio(self, index: int, num_steps: int) -> float:
        return self.ratios[self.position((0.0, index), num_steps)]


@frozen
class ByLevel:
    """The size M as a function of t: the cumulative product of the ratios, its logarithm linear between the timesteps.

    The ratio of any move from t_a to t_b is ``M(t_b) / M(t_a)``: the moves of a run with another number of steps
    multiply to the same, and on the calibrated timesteps this is the table. Beyond its ends M is constant.

    Attributes:
        ratios: N entries; entry k is the ratio of step k to step k - 1.
        timesteps: N calibrated t, strictly decreasing.
    """

    ratios: tuple[float, ...]
    timesteps: tuple[float, ...]
    _logs: PiecewiseLinear = field(init=False, repr=False, eq=False)

    @_logs.default
    def _cumulative(self) -> PiecewiseLinear:
        logs = tuple(accumulate(map(math.log, self.ratios[1:]), initial=0.0))
        return PiecewiseLinear(tuple(-t for t in self.timesteps), logs)

    def between(self, before: Position, now: Position, num_steps: int) -> float:
        """Return ``M(t_now) / M(t_before)``."""
        return math.exp(self._logs.at(-now[0]) - self._logs.at(-before[0]))

    def position(self, now: Position, num_steps: int) -> int:
        """Return the calibrated step whose t is nearest."""
        return min(range(len(self.timesteps)), key=lambda k: abs(self.timesteps[k] - now[0]))


def curves_of(
    ratios: tuple[float, ...] | Mapping[str, tuple[float, ...]] | None, lookup: str, profile: Profile | None
) -> dict[str, RatioCurve]:
    """Return the curve of every stream; that of the empty name serves all.

    Args:
        ratios: given ones, or ``None`` for the profile's, averaged over the samples.
        lookup: ``"level"`` or ``"index"``.
        profile: ``None`` if there is none.

    Raises:
        NeedsError: there are no ratios, or no timesteps to read them by level.
        SettingsError: a ratio is not finite and positive, the first is not 1, or there are not as many as timesteps.
    """
    if ratios is None:
        tables = {} if profile is None else profile.magnitude_ratios
        named = {stream: tuple(table.mean(axis=1).tolist()) for stream, table in tables.items()}
    else:
        named = dict(ratios) if isinstance(ratios, Mapping) else {ALL_STREAMS: ratios}
    if not named:
        has = f"profile {profile.name!r} has none" if profile is not None else "no profile was given"
        raise NeedsError(
            f"policy 'magcache' needs magnitude ratios ({has}); give ratios=..., or use a profile that has them "
            "(`cachepolicies profiles` lists those shipped, `cachepolicies calibrate` measures them)"
        )
    timesteps = () if profile is None else profile.timesteps
    if lookup == "level" and not timesteps:
        raise NeedsError(
            "policy 'magcache' with lookup='level' reads the ratios on a profile's timesteps, and there are none; "
            "give lookup='index', or a profile with timesteps"
        )
    for stream, values in named.items():
        _check(values, "ratios" + (f" of stream {stream!r}" if stream else ""), timesteps if lookup == "level" else ())
    if lookup == "level":
        return {stream: ByLevel(values, timesteps) for stream, values in named.items()}
    return {stream: ByIndex(values) for stream, values in named.items()}


def curve_for(branch: str, curves: Mapping[str, RatioCurve]) -> RatioCurve:
    """Return the curve of the stream that has the branch's name, else that of all, else ``cond``, else the only one.

    Raises:
        NeedsError: none of these is there.
    """
    for stream in (branch, ALL_STREAMS, "cond"):
        if stream in curves:
            return curves[stream]
    if len(curves) == 1:
        return next(iter(curves.values()))
    raise NeedsError(
        f"policy 'magcache' has ratios of the streams {', '.join(sorted(curves))}, and none for branch {branch!r}; "
        "name the branch as one of them, or give ratios=..."
    )


def check_positions(positions: Sequence[int], curves: Mapping[str, RatioCurve]) -> None:
    """Check that these entries are in every table.

    Raises:
        SettingsError: one is not.
    """
    length = min(len(curve.ratios) for curve in curves.values())
    outside = [position for position in positions if position >= length]
    if outside:
        raise SettingsError(f"MagCache: never holds {outside[0]}, but the ratios have the entries 0 to {length - 1}")


def check_streams(ratios: object, num_steps: int | None) -> None:
    """Check that one given sequence is not that of two streams in turn, which is how the authors print theirs.

    Raises:
        SettingsError: it has two entries for every step, and begins with 1 twice.
    """
    if isinstance(ratios, tuple) and len(ratios) == 2 * (num_steps or 0) and ratios[1] == 1.0:
        raise SettingsError(
            f"MagCache: ratios has {len(ratios)} entries for {num_steps} steps and begins with 1, 1: it alternates "
            'between two streams; give {"cond": ratios[0::2], "uncond": ratios[1::2]}'
        )


def _check(values: Sequence[float], what: str, timesteps: Sequence[float]) -> None:
    for place, value in enumerate(values):
        if not (math.isfinite(value) and value > 0):
            raise SettingsError(f"MagCache: {what}: entry {place} is {value}; a ratio of sizes is finite and > 0")
    if values[0] != 1.0:
        raise SettingsError(
            f"MagCache: {what}: entry 0 is {values[0]}, expected 1: the first step has no predecessor; put 1.0 in "
            "front of a list that begins with the ratio of the second step"
        )
    if timesteps and len(values) != len(timesteps):
        raise SettingsError(
            f"MagCache: {what}: {len(values)} entries for the profile's {len(timesteps)} timesteps; give one for every "
            "timestep, or lookup='index'"
        )
