"""How the error of a substitute grows with the distance from its refreshes, measured on the calibration runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from cachepolicies.base.curves import locate
from cachepolicies.base.errors import NeedsError, PolicyError
from cachepolicies.profiles.schema import RECALIBRATE, Profile

if TYPE_CHECKING:
    from cachepolicies.contracts.substitute import Extrapolation

Floats = NDArray[np.float64]

GAPS = 5
"""How many distances between two refreshes are tried, from one step to a tenth of the run (at least `GAPS` steps)."""

STRETCH = 2
"""A distance is at most this many times the one before it: plans do not reach much further than they remember."""

LEAST_EXPONENT = 0.1
"""Below it the score would hardly depend on the distance."""

LARGEST_ELASTICITY = 1.0
"""Of the error over the displacement. More is measured on some models, and would amplify what reuse itself adds to the
displacement: a latent that is moved by reused outputs moves differently."""

LEAST_SAMPLES = 3
"""Of a calibration for an elasticity: fewer do not show how far a slope can be trusted."""

_SPREAD = 1e-12
"""Variance of log displacement over the samples below which they do not differ but by rounding."""

_SUM = 1e-6
"""How far the weights of a combination may be from a sum of 1; more is a combination that `change` cannot judge."""


@frozen(eq=False)
class Growth:
    """A law ``error = kappa(t) * g ** exponent`` fitted to measured errors.

    g is the remainder of polynomial extrapolation of order p, ``prod |tau - tau_ri| / (p + 1)!`` over the p + 1
    refreshes, and t the middle between the newest refresh and the step that is skipped. On a smooth run the exponent is
    1 and kappa the size of the derivative of order p + 1; networks are rougher than that, and the exponent smaller.

    Attributes:
        order: p.
        exponent: from `LEAST_EXPONENT` to 1.
        t: where kappa is known, strictly increasing.
        log_kappa: its natural logarithm there; empty where the output does not change at all.
        elasticity: the power of its displacement that the error of a sample follows, from 0 to `LARGEST_ELASTICITY`.
            0: that a sample moves further than others does not tell its error.
    """

    order: int
    exponent: float
    t: tuple[float, ...]
    log_kappa: tuple[float, ...]
    elasticity: float = 0.0
    _log_factorial: float = field(init=False, repr=False)

    @_log_factorial.default
    def _remainder(self) -> float:
        return math.log(math.factorial(self.order + 1))

    def kappa(self, t: float) -> float:
        """Return kappa at t, between its points linear in the logarithm, beyond the ends that of the end."""
        return math.exp(self._log(t)) if self.t else 0.0

    def error(self, t: float, product: float) -> float:
        """Return the predicted RMS error.

        Args:
            t: the middle between the newest refresh and the skipped step.
            product: ``prod |tau - tau_ri|`` over the p + 1 refreshes.
        """
        if not self.t or product <= 0:
            return 0.0
        return math.exp(self._log(t) + self.exponent * (math.log(product) - self._log_factorial))

    def _log(self, t: float) -> float:
        before, share = locate(self.t, t)
        log = self.log_kappa[before]
        return log + share * (self.log_kappa[before + 1] - log) if share else log


def combination_rms(change: Floats, steps: NDArray[np.int64], weights: Floats) -> Floats:
    """Return the RMS of combinations of the outputs of calibration runs, from their pairwise distances alone.

    For weights that sum to 0, ``rms(sum_i a_i y_i)^2 = -1/2 sum_ij a_i a_j rms(y_i - y_j)^2`` (Schoenberg's identity
    for squared distances): expanding the square on the right, what is not a product ``a_i a_j <y_i, y_j>`` carries the
    factor ``sum a = 0``.

    Args:
        change: ``(N, N, S)`` RMS of y_i - y_j for each sample.
        steps: ``(M, q)`` the steps that each of M combinations is made of.
        weights: ``(M, q)`` their weights, each row with sum 0.

    Returns:
        ``(M, S)`` float64; what rounding makes negative under the root is 0.
    """
    squares = change.astype(np.float64) ** 2
    squares = (squares + squares.swapaxes(0, 1)) / 2
    total = np.zeros((len(steps), change.shape[2]))
    for i, j in itertools.combinations(range(steps.shape[1]), 2):
        total -= (weights[:, i] * weights[:, j])[:, None] * squares[steps[:, i], steps[:, j]]
    return cast("Floats", np.sqrt(np.maximum(total, 0.0)))


def measure(profile: Profile, substitute: Extrapolation, order: int, exponent: float | None = None) -> Growth:
    """Fit the law to the errors of a substitute on the calibration runs.

    The errors are those at every calibrated step, from ``order + 1`` refreshes at many distances, even and uneven: the
    shortest alone are dominated by the roughness of the output and overestimate the others several times. The exponent
    is a least-squares fit common to all steps, kappa the geometric mean at each; errors count by their logarithms, for
    a tolerance decides by ratios.

    The elasticity is a least-squares slope as well, of log error over log displacement between the samples at each
    step, less its standard error (by the jackknife over samples): what a few samples do not show for sure is left out,
    because it would take displacement that reuse itself causes for an error to come. It is 0 for fewer than
    `LEAST_SAMPLES` samples, and where they do not differ.

    Args:
        profile: has the tables ``change`` and ``displacement``.
        substitute: gives the weights of the refreshes, and the axis tau.
        order: of the law, at most the substitute's; a lower one is what it does while its history is short. Order 0
            is measured in t, which is finite everywhere.
        exponent: instead of a fitted one.

    Raises:
        NeedsError: the profile lacks a table, or is too short.
        PolicyError: the weights of the substitute do not sum to 1, so that ``change`` does not tell its errors.
    """
    profile.require("extrapolation", ("change", "displacement"), "score")
    change = profile.tables["change"]
    levels = profile.timesteps
    tau = levels if order == 0 else tuple(substitute.time(t) for t in levels)
    steps, weights, products = _combinations(levels, tau, substitute, order)
    if not len(steps):
        raise NeedsError(
            f"profile {profile.name!r} has {len(levels)} steps; an extrapolation of order {order} is calibrated on "
            f"{order + 2} with a finite time at least; {RECALIBRATE}"
        )
    each = combination_rms(change, steps, weights)
    errors = each.mean(axis=1)
    floor = _rounding(change, steps, weights)
    moving = floor > 0  # where nothing changes at all there is no error to fit
    logs, remainders = np.log(np.maximum(errors[moving], floor[moving])), np.log(products[moving])
    remainders -= math.log(math.factorial(order + 1))
    if not len(logs):
        return Growth(order, 1.0 if exponent is None else exponent, (), ())
    rows = steps[moving]
    bins = (rows[:, 0] + rows[:, 1]) // 2
    middles = np.array(levels)[rows[:, :2]].mean(axis=1)
    if exponent is None:
        exponent = _slope(remainders, logs, bins)
    _, means = _means(bins, np.stack([middles, logs - exponent * remainders], axis=1))
    elasticity = _elasticity(each, profile.tables["displacement"][steps[:, 0], steps[:, 1]], floor)
    return Growth(order, exponent, tuple(means[::-1, 0].tolist()), tuple(means[::-1, 1].tolist()), elasticity)


def _combinations(
    levels: Sequence[float], tau: Sequence[float], substitute: Extrapolation, order: int
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return the steps (skipped one first), the weights (1, then minus the substitute's) and prod |tau - tau_ri|."""
    steps, weights, products = [], [], []
    for offsets in _offsets(len(levels), order):
        for k in range(offsets[-1], len(levels)):
            chosen = (k, *(k - offset for offset in offsets))
            axis = [tau[step] for step in chosen]
            if len(set(axis)) < len(axis) or not all(math.isfinite(value) for value in axis):
                continue
            given = (1.0,) if order == 0 else substitute.coefficients(levels[k], [levels[r] for r in chosen[1:]])
            if len(given) != order + 1:
                continue
            if not abs(sum(given) - 1.0) <= _SUM * sum(abs(c) for c in given):
                raise PolicyError(
                    f"the weights {given} of {type(substitute).__name__} at t={levels[k]:g} sum to {sum(given):g}, not "
                    "to 1: the table 'change' does not tell its errors; use score='bound' with it"
                )
            steps.append(chosen)
            weights.append((1.0, *(-c for c in given)))
            products.append(math.prod(abs(axis[0] - value) for value in axis[1:]))
    shape = (-1, order + 2)
    return (
        np.array(steps, dtype=np.int64).reshape(shape),
        np.array(weights, dtype=np.float64).reshape(shape),
        np.array(products, dtype=np.float64),
    )


def _offsets(count: int, order: int) -> Iterator[tuple[int, ...]]:
    longest = max(GAPS, count // 10)
    gaps = sorted({round(gap) for gap in np.linspace(1, longest, GAPS)})
    for chosen in itertools.product(gaps, repeat=order + 1):
        if all(newer <= STRETCH * older for newer, older in itertools.pairwise(chosen)):
            yield tuple(itertools.accumulate(chosen))


def _rounding(change: NDArray[np.floating], steps: NDArray[np.int64], weights: Floats) -> Floats:
    """Return ``(M,)``: the error that rounding of the table alone can make; a smaller one is not known."""
    squares = (change.astype(np.float64) ** 2).mean(axis=2)[steps[:, :, None], steps[:, None, :]]
    sizes = np.einsum("mi,mj,mij->m", np.abs(weights), np.abs(weights), squares)
    precision = np.finfo(change.dtype if change.dtype.kind == "f" else np.float64).eps
    return cast("Floats", np.sqrt(precision * sizes))


def _slope(x: Floats, y: Floats, bins: NDArray[np.int64]) -> float:
    """Return the common slope of y over x, every bin with an intercept of its own."""
    filled, means = _means(bins, np.stack([x, y], axis=1))
    centred = np.stack([x, y], axis=1) - means[np.searchsorted(filled, bins)]
    spread = float((centred[:, 0] ** 2).sum())
    if spread == 0:
        return 1.0
    return min(1.0, max(LEAST_EXPONENT, float((centred[:, 0] * centred[:, 1]).sum()) / spread))


def _elasticity(errors: Floats, moved: NDArray[np.floating], floor: Floats) -> float:
    """Return how surely log error rises with log displacement from sample to sample, both ``(M, S)``: see `measure`."""
    known = (errors > floor[:, None]) & (moved > 0)
    x, y = (
        _from_the_mean(np.log(np.where(known, values, 1.0).astype(np.float64)), known) for values in (moved, errors)
    )
    samples = np.flatnonzero(known.any(axis=0))
    if len(samples) < LEAST_SAMPLES:
        return 0.0
    slope = _common_slope(x, y)
    without = [
        _common_slope(*(_from_the_mean(np.delete(z, s, axis=1), np.delete(known, s, axis=1)) for z in (x, y)))
        for s in samples
    ]
    # the jackknife over samples: all steps of one sample tell the same story, and count as one
    error = math.sqrt((len(samples) - 1) * float(np.var(without)))
    return min(LARGEST_ELASTICITY, max(0.0, slope - error))


def _from_the_mean(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return ``(M, S)`` minus the mean of what is known in each row; 0 where it is not known."""
    counts = np.maximum(known.sum(axis=1, keepdims=True), 1)
    means = np.where(known, values, 0.0).sum(axis=1, keepdims=True) / counts
    return cast("Floats", np.where(known, values - means, 0.0))


def _common_slope(x: Floats, y: Floats) -> float:
    """Return the least-squares slope of y over x through the origin; 0 where x does not differ but by rounding."""
    spread = float((x**2).sum())
    return float((x * y).sum()) / spread if spread > _SPREAD * x.size else 0.0


def _means(bins: NDArray[np.int64], values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the bins that hold something, rising, and the mean of the values ``(M, C)`` in each."""
    filled, inverse = np.unique(bins, return_inverse=True)
    sums = np.zeros((len(filled), values.shape[1]))
    np.add.at(sums, inverse, values)
    return filled, sums / np.bincount(inverse)[:, None]
