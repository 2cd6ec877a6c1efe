"""The errors that reuses make: measured on the calibration runs, or predicted by a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from cachepolicies.base.errors import NeedsError, PolicyError, SettingsError
from cachepolicies.contracts.substitute import Extrapolation
from cachepolicies.planning.error_table import Floats, Integers, existing, refreshes_of, table_shape
from cachepolicies.profiles.schema import RECALIBRATE, Profile
from cachepolicies.scores.growth import combination_rms

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score
    from cachepolicies.contracts.substitute import Substitute

_Errors: TypeAlias = "Callable[[Integers, tuple[Integers, ...]], Floats]"

_SUM_SLACK = 1e-6
"""How far the weights of a linear combination may be from the sum 1: their own rounding."""

_AT_ONCE = 1_000_000
"""Entries that are combined together, so that memory stays small beside the table's own."""


def as_extrapolation(substitute: Substitute) -> Extrapolation:
    """Return the substitute as the linear combination that planning needs to know.

    Raises:
        SettingsError: it does not say how it combines what it remembers.
    """
    if not isinstance(substitute, Extrapolation):
        raise SettingsError(
            f"substitute {substitute.name!r} does not say how it combines remembered outputs (order, time, "
            "coefficients), so its errors cannot be planned for; plan for hold or another one that does"
        )
    return substitute


def measured_errors(
    profile: Profile, substitute: Extrapolation, max_reuse: int | None = None, order: int | None = None
) -> Floats:
    """Return the RMS errors that a substitute makes on the calibration runs, the mean over the samples.

    The table ``change`` holds the RMS of y_i - y_j, which is all that is needed for any combination of outputs, see
    `cachepolicies.scores.growth.combination_rms`. Its weights are 1 at the reused step and minus the substitute's
    coefficients at the refreshes, asked for at every history: 50 steps of order 2 have 230 000, which take a substitute
    without `ManyCoefficients` seconds; a ``max_reuse`` leaves a fraction of them. Float32 tables leave an error of
    about 1e-3 times the largest E that takes part.

    Args:
        profile: has the table ``change``.
        substitute: its coefficients are used, of a lower order where the history is short.
        max_reuse: most reuses in a row, None without a limit.
        order: how many older refreshes the table tells apart; the substitute's own if ``None``.

    Returns:
        The table of `cachepolicies.planning.PlanningProblem`, float64.

    Raises:
        NeedsError: the profile has no table ``change``.
        PolicyError: the substitute's coefficients are not finite or do not sum to 1, or are more than the refreshes.
        SettingsError: the table would be too large; says which ``max_reuse`` is possible.
    """
    require(profile, ("change",), "measured errors")
    return errors_between(profile.tables["change"], profile.timesteps, substitute, max_reuse, order)


def errors_between(
    change: NDArray[Any],
    timesteps: Sequence[float],
    substitute: Extrapolation,
    max_reuse: int | None = None,
    order: int | None = None,
) -> Floats:
    """Return `measured_errors` from the RMS distances themselves, ``(N, N, B)``; raises as it does."""

    def combined(k: Integers, refreshes: tuple[Integers, ...]) -> Floats:
        weights = coefficients_at(substitute, timesteps, k, refreshes)
        return cast("Floats", combination_rms(change, np.stack((k, *refreshes), axis=1), weights).mean(axis=1))

    return _filled_table(len(timesteps), substitute.order if order is None else order, max_reuse, combined)


def predicted_errors(
    score: Score, timesteps: Sequence[float], displacement: Floats, max_reuse: int | None = None
) -> Floats:
    """Return the RMS errors that a score predicts for the mean displacement of the calibration runs.

    Args:
        score: see `cachepolicies.scores`.
        timesteps: N values of t, one per step.
        displacement: ``(N, N)`` RMS between the latents of two steps, the mean over the samples.
        max_reuse: most reuses in a row, None without a limit.

    Returns:
        The table of `cachepolicies.planning.PlanningProblem`, float64.

    Raises:
        SettingsError: the displacement has another shape, or the table would be too large.
    """
    ts = tuple(float(t) for t in timesteps)
    if displacement.shape != (len(ts), len(ts)):
        raise SettingsError(f"displacement has shape {displacement.shape}, expected {(len(ts), len(ts))}")

    def scored(k: Integers, refreshes: tuple[Integers, ...]) -> Floats:
        moved = displacement[refreshes[0], k].tolist()
        steps = zip(*(step.tolist() for step in refreshes), strict=True)
        found = [
            score.at([ts[r] for r in row], ts[at], distance)
            for at, row, distance in zip(k.tolist(), steps, moved, strict=True)
        ]
        return np.array(found, dtype=np.float64)

    return _filled_table(len(ts), score.order, max_reuse, scored)


def displacement_of(profile: Profile, timesteps: Sequence[float]) -> Floats:
    """Return the mean displacement between all pairs of timesteps, ``(N, N)`` float64; interpolated off the grid.

    Raises:
        NeedsError: the profile has no table ``displacement``.
    """
    from cachepolicies.scores.displacement import Displacement

    require(profile, ("displacement",), "the displacement between steps")
    return cast("Floats", Displacement(profile).table(timesteps).mean(axis=2))


def require(profile: Profile, names: Sequence[str], what: str) -> None:
    """Check that a profile has some curves and tables.

    Raises:
        NeedsError: one is missing; names it and what is there.
    """
    known = {*profile.curves, *profile.tables}
    if missing := [name for name in names if name not in known]:
        raise NeedsError(
            f"{what} need {', '.join(map(repr, missing))}, which profile {profile.name!r} does not have (it has: "
            f"{', '.join(sorted(known)) or 'nothing'}); {RECALIBRATE}"
        )


def _filled_table(num_steps: int, order: int, max_reuse: int | None, errors: _Errors) -> Floats:
    """Fill a table: ``errors(k, refreshes)`` for index arrays of the reused steps and their refreshes, newest first."""
    shape = table_shape(num_steps, order, max_reuse)
    table = np.full(shape, np.inf)
    entries = np.nonzero(existing(shape))
    depths = np.count_nonzero(np.stack(entries[2:]), axis=0) if order else np.zeros(len(entries[0]), dtype=np.intp)
    for depth in range(order + 1):
        at_depth = np.flatnonzero(depths == depth)
        for start in range(0, len(at_depth), _AT_ONCE):
            part = at_depth[start : start + _AT_ONCE]
            chosen = tuple(index[part] for index in entries)
            table[chosen] = errors(chosen[0] + chosen[1] + 1, refreshes_of(chosen, depth))
    return table


def coefficients_at(
    substitute: Extrapolation, timesteps: Sequence[float], k: Integers, refreshes: tuple[Integers, ...]
) -> Floats:
    """Return ``(M, 1 + refreshes)``: 1 for the reused step, minus the substitute's coefficients for the refreshes."""
    found = np.zeros((len(k), 1 + len(refreshes)))
    found[:, 0] = 1.0
    levels = np.asarray(timesteps, dtype=np.float64)
    found[:, 1:] = substitute.many_coefficients(levels[k], levels[np.stack(refreshes, axis=1)])
    return _with_sum_zero(found, substitute, timesteps, k)


def _with_sum_zero(found: Floats, substitute: Extrapolation, timesteps: Sequence[float], k: Integers) -> Floats:
    found[:, 1:] *= -1.0
    wrong = ~(np.abs(found.sum(axis=1)) <= _SUM_SLACK * np.abs(found).sum(axis=1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise PolicyError(
            f"substitute {substitute!r} has the coefficients {(-found[row, 1:]).tolist()} at "
            f"t = {timesteps[int(k[row])]:g}; planning on measured errors takes finite ones that sum to 1; plan with "
            "errors='predicted'"
        )
    return found
