"""The closed form of the optimal tolerance: eps(t) = c * sqrt(s(t) / w(t)), and its form for any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.contracts.score import Score
from cachepolicies.planning.simulate import simulate_run
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.profiles.schema import Profile
from cachepolicies.scores.displacement import Displacement

Floats = NDArray[np.float64]

_MOST_WIDENINGS = 60
"""Factors of e by which the range of c is widened at most."""

_PRECISION = 1e-10


@frozen(eq=False)
class ClosedForm:
    """A tolerance in closed form, and what it gives on the calibration runs.

    Attributes:
        curve: eps(t), a point for every step.
        constant: c; eps = c * shape, the geometric mean of the shape over the steps is 1, so c is an RMS change of the
            output: the tolerance of a typical step.
        evaluations: mean number of evaluations over the calibration runs, simulated with the displacement of each.
        error: mean over them of ``sum w_k S_k``, over the reused steps: the predicted change of the sample, RMS if the
            weights are.
    """

    curve: ToleranceCurve
    constant: float
    evaluations: float
    error: float


def tolerance(
    profile: Profile,
    score: Score,
    weights: Sequence[float] | Floats,
    timesteps: Sequence[float] | None = None,
    *,
    nfe: float | None = None,
    target: float | None = None,
    max_reuse: int | None = None,
) -> ToleranceCurve:
    """Return the curve of `solve`, which says what it means and raises."""
    return solve(profile, score, weights, timesteps, nfe=nfe, target=target, max_reuse=max_reuse).curve


def solve(
    profile: Profile,
    score: Score,
    weights: Sequence[float] | Floats,
    timesteps: Sequence[float] | None = None,
    *,
    nfe: float | None = None,
    target: float | None = None,
    max_reuse: int | None = None,
) -> ClosedForm:
    """Find the tolerance that is optimal in the continuous limit, for a budget or for a final error.

    Let the error of a reuse l steps after the last refresh be ``K(t) l^q`` (K the score over one step, q its growth: 1
    for hold, p + 1 for a smooth extrapolation of order p). Refreshing every l steps costs ``w K l^q / (q + 1)`` in
    mean error and ``1 / l`` evaluations a step. With a multiplier, ``w K l^q / (q + 1) + lambda / l`` is least where
    ``l^(q + 1) = lambda (q + 1) / (q w K)``; the score at that distance is the tolerance,

        eps = K l^q = c * K^(1 / (q + 1)) * w^(-q / (q + 1))

    which is ``c * sqrt(s / w)`` for hold, and ``c * kappa_p^(1 / (p + 2)) * w^(-(p + 1) / (p + 2))`` for order p. K and
    w are per step of one and the same grid. K at a step is the mean over the step before and the one after it, on the
    mean displacement of the calibration runs; the first steps, whose history is short, take the K of the first that
    has a full one. Where K or w is 0, what the positive values around it give by geometric interpolation over the step
    index stands in: the formula would ask for no tolerance at all or for an infinite one there.

    c comes from `scipy.optimize.brentq` over log c. With ``nfe``, the mean number of simulated evaluations over the
    calibration runs, each with its own displacement, falls as c grows, in jumps of one evaluation of one run; of all
    runs at once where the score does not go by the displacement of the sample. Of the two sides of the last jump the
    one nearer to the budget is taken, of equally near ones that with fewer evaluations.
    A step whose score is 0 is reused whatever c is, so that a run may need fewer evaluations than the budget allows.
    With ``target``, it is the predicted final error, and the side that does not exceed it.

    Args:
        profile: has the table ``displacement``, and what the score was made from.
        score: the one that the tolerance will be compared with.
        weights: ``(M,)`` effect on the sample of an error at each step, finite, >= 0, on this grid.
        timesteps: M noise levels, strictly decreasing; the profile's if ``None``. Others are interpolated.
        nfe: mean evaluations a run, from 1 to M; or
        target: the predicted final error, in the unit of weights times score.
        max_reuse: largest number of consecutive reuses; ``None`` for no limit.

    Raises:
        SettingsError: not exactly one of ``nfe`` and ``target``, or one that no constant reaches; weights of the wrong
            number, negative, not finite or all zero.
        ProfileError: the score is zero or not finite at every step.
        NeedsError: the profile has no displacements.
        InputError: the timesteps do not decrease.
    """
    levels = tuple(float(t) for t in (profile.timesteps if timesteps is None else timesteps))
    if not levels or not all(math.isfinite(t) for t in levels) or any(b >= a for a, b in pairwise(levels)):
        raise InputError(f"the timesteps must be finite and strictly decreasing, got {levels}")
    if (nfe is None) == (target is None):
        raise SettingsError(f"give either nfe or target, got nfe={nfe!r} and target={target!r}")
    w = _checked_weights(weights, len(levels))
    displacement = Displacement(profile).table(levels)
    shape = optimal_shape(score, w, levels, displacement.mean(axis=2))
    tables = np.moveaxis(displacement, 2, 0).tolist()
    seen: dict[float, tuple[float, float]] = {}

    def outcome(log_c: float) -> tuple[float, float]:
        if log_c not in seen:
            epsilon = (math.exp(log_c) * shape).tolist()
            runs = [simulate_run(score, epsilon, levels, table, max_reuse) for table in tables]
            evaluations = sum(len(one.refreshes) for one in runs) / len(runs)
            error = sum(float(w @ np.array(one.reuse_scores)) for one in runs) / len(runs)
            seen[log_c] = (evaluations, error)
        return seen[log_c]

    low, high = _range_of_log_c(score, levels, tables, shape)
    if nfe is not None:
        log_c = _for_budget(outcome, seen, low, high, nfe, len(levels), max_reuse)
    else:
        assert target is not None
        log_c = _for_target(outcome, seen, low, high, target, max_reuse)
    evaluations, error = outcome(log_c)
    epsilon = (math.exp(log_c) * shape).tolist()
    return ClosedForm(ToleranceCurve(levels, epsilon), math.exp(log_c), evaluations, error)


def optimal_shape(score: Score, weights: Floats, timesteps: Sequence[float], displacement: Floats) -> Floats:
    """Return ``(M,)`` eps up to its constant, with a geometric mean of 1; see `solve`.

    Args:
        score: its growth is q, its values over one step are K.
        weights: ``(M,)``, not all zero.
        timesteps: M noise levels.
        displacement: ``(M, M)`` mean displacement.

    Raises:
        ProfileError: K is zero or not finite at every step.
    """
    rates = _filled(one_step_scores(score, timesteps, displacement))
    if rates is None:
        raise ProfileError(
            f"the score {score.name!r} predicts no finite change at any of the {len(timesteps)} steps; "
            "calibrate the profile again"
        )
    filled = _filled(weights)
    assert filled is not None
    q = score.growth
    logs = (np.log(rates) - q * np.log(filled)) / (q + 1.0)
    return cast("Floats", np.exp(logs - logs.mean()))


def one_step_scores(score: Score, timesteps: Sequence[float], displacement: Floats) -> Floats:
    """Return ``(M,)`` K: the score over one step with refreshes at every step before; see `solve`."""
    count, order = len(timesteps), score.order
    over = np.full(count, np.nan)  # over[k]: from step k - 1 to k
    for k in range(1, count):
        history = [timesteps[r] for r in range(k - 1, max(k - 2 - order, -1), -1)]
        if len(history) == min(order + 1, count - 1):
            over[k] = score.at(history, timesteps[k], float(displacement[k - 1, k]))
    either = np.stack([over, np.append(over[1:], np.nan)])
    known = np.isfinite(either)
    sums = np.where(known, either, 0.0).sum(axis=0)
    return cast("Floats", np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), 0.0))


def _checked_weights(weights: Sequence[float] | Floats, count: int) -> Floats:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (count,):
        raise SettingsError(f"the weights have shape {w.shape}, expected ({count},), one a step of these timesteps")
    if not np.isfinite(w).all() or (w < 0).any():
        bad = int(np.argmax(~np.isfinite(w) | (w < 0)))
        raise SettingsError(f"the weight of step {bad} is {w[bad]}; weights are finite and >= 0")
    if not (w > 0).any():
        raise SettingsError("the weights are zero at every step: no error matters, and no tolerance is best")
    return w


def _filled(values: Floats) -> Floats | None:
    """Return the values with zeros replaced from their positive neighbours, or ``None`` if there are none."""
    positive = np.flatnonzero((values > 0) & np.isfinite(values))
    if not len(positive):
        return None
    return cast("Floats", np.exp(np.interp(np.arange(len(values)), positive, np.log(values[positive]))))


def _range_of_log_c(
    score: Score, timesteps: Sequence[float], tables: list[list[list[float]]], shape: Floats
) -> tuple[float, float]:
    """Return log c below which every step is evaluated, and above which none is that need not be."""
    values = []
    for table in tables:
        never = simulate_run(score, [0.0] * len(timesteps), timesteps, table, 0)
        always = simulate_run(score, [math.inf] * len(timesteps), timesteps, table, None)
        values += [v / e for one in (never, always) for v, e in zip(one.scores, shape.tolist(), strict=True) if v > 0]
    finite = [value for value in values if value < math.inf]
    low, high = (math.log(min(finite)), math.log(max(finite))) if finite else (0.0, 0.0)
    # Between the two the history is mixed, and an extrapolation's score may leave their range.
    return low - 1.0, high + 1.0


def _widen(falling: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Move the ends apart until a falling function changes sign between them, as far as that makes sense."""
    for _ in range(_MOST_WIDENINGS):
        if falling(low) >= 0:
            break
        low -= 1.0
    for _ in range(_MOST_WIDENINGS):
        if falling(high) <= 0:
            break
        high += 1.0
    return low, high


def _for_budget(
    outcome: Callable[[float], tuple[float, float]],
    seen: dict[float, tuple[float, float]],
    low: float,
    high: float,
    nfe: float,
    count: int,
    max_reuse: int | None,
) -> float:
    from scipy.optimize import brentq

    if not 1 <= nfe <= count:
        raise SettingsError(f"nfe must be from 1 to {count}, the number of steps; got {nfe!r}")
    fewest = 1 if max_reuse is None else math.ceil(count / (max_reuse + 1))
    if nfe < fewest:
        raise SettingsError(
            f"nfe={nfe:g} and max_reuse={max_reuse} on {count} steps clash: at least {fewest} evaluations; "
            "raise one of them"
        )

    def excess(log_c: float) -> float:
        return outcome(log_c)[0] - nfe

    low, high = _widen(excess, low, high)
    if excess(low) > 0 > excess(high):
        brentq(excess, low, high, xtol=_PRECISION)
    return min(seen, key=lambda log_c: (abs(excess(log_c)), excess(log_c), -log_c))


def _for_target(
    outcome: Callable[[float], tuple[float, float]],
    seen: dict[float, tuple[float, float]],
    low: float,
    high: float,
    target: float,
    max_reuse: int | None,
) -> float:
    from scipy.optimize import brentq

    if not 0 < target < math.inf:
        raise SettingsError(f"target must be a finite number > 0, the predicted change of the sample; got {target!r}")

    def missing(log_c: float) -> float:
        return target - outcome(log_c)[1]

    low, high = _widen(missing, low, high)
    if missing(high) > 0:
        evaluations, error = outcome(high)
        raise SettingsError(
            f"target={target:g} is out of reach: with the fewest evaluations that max_reuse={max_reuse} allows, "
            f"{evaluations:g}, the predicted error is only {error:.4g}; lower the target or raise max_reuse"
        )
    if missing(low) > 0 > missing(high):
        brentq(missing, low, high, xtol=_PRECISION)
    met = [log_c for log_c in seen if missing(log_c) >= 0]
    if not met:
        raise SettingsError(f"target={target:g} is out of reach: even the smallest tolerance predicts more")
    return min(met, key=lambda log_c: (seen[log_c][0], seen[log_c][1]))
