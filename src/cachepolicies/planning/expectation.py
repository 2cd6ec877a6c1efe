"""What a plan is expected to give on new samples: from trials on samples that their plans were not made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cachepolicies.planning.error_table import Floats
from cachepolicies.profiles.parts import Trials

if TYPE_CHECKING:
    from cachepolicies.planning.problem import Solution

CONTENT = 0.9
"""The part of new samples that lies on the good side of an interval's end."""

CONFIDENCE = 0.99
"""How sure that is, over all sets of samples that could have been tried.

Chosen on the reference models (not their twins), among 0.75, 0.9, 0.95, 0.975 and 0.99: with 16 samples tried, targets
were missed on more than a tenth of other samples in 9, 5, 3, 2 and 1 % of the cases, which took 1 to 2 evaluations more
from 0.95 to 0.99.
"""

MARGIN = 3.0
"""How far below a target, in dB, nine samples in ten may be at most."""

_FEWEST = 3
_SMALLEST = 1e-10


@frozen
class Interval:
    """What new samples are expected to have, in dB: the larger, the nearer to the uncached sample.

    Attributes:
        mean: the mean over new samples.
        low: nine new samples in ten are above it.
        high: nine new samples in ten are below it. Each with a confidence of 99 %.
    """

    mean: float
    low: float
    high: float


@frozen
class Expectation:
    """What a number of evaluations is expected to give on new samples.

    Attributes:
        error: ``-20 log10`` of the RMS of the latent's difference from the uncached run's, per element.
        psnr: of the pictures; None where the trials decoded none.
        samples: number of samples that were tried.
    """

    error: Interval
    psnr: Interval | None
    samples: int


def expectations(trials: Trials, curve: Sequence[Solution]) -> list[Expectation | None]:
    """Return what to expect of every point of a trade-off curve.

    Between the budgets that were tried, and above them, the dB by which trials differ from the objective's own
    prediction are interpolated linearly over the number of evaluations. Below the smallest that was tried nothing is
    expected, nor where nothing is reused.

    The ends of the intervals are one-sided normal tolerance limits at each budget: the mean minus k standard
    deviations, with k from the noncentral t distribution (Lieberman and Resnikoff 1955).

    Args:
        trials: at least three samples.
        curve: the best for every budget.
    """
    if trials.samples < _FEWEST:
        return [None] * len(curve)
    predicted = {point.budget: point.predicted for point in curve}
    tried = [b for b in trials.budgets if b in predicted and predicted[b] > 0]
    if not tried:
        return [None] * len(curve)
    rows = [trials.budgets.index(b) for b in tried]
    own = np.array([_decibels(np.array(predicted[b])) for b in tried])
    kinds = [None if errors is None else _decibels(errors[rows]) for errors in (trials.rms, trials.picture_rms)]
    found: list[Expectation | None] = []
    for point in curve:
        if point.budget < tried[0] or point.predicted <= 0:
            found.append(None)
            continue
        here = float(_decibels(np.array(point.predicted)))
        error, psnr = (None if kind is None else _interval(point.budget, here, tried, own, kind) for kind in kinds)
        assert error is not None
        found.append(Expectation(error, psnr, trials.samples))
    return found


def reaches(interval: Interval | None, decibels: float) -> bool:
    """Whether a target is met: the mean is there, and nine new samples in ten are at most 3 dB below."""
    return interval is not None and interval.mean >= decibels and interval.low >= decibels - MARGIN


def tolerance_factor(samples: int) -> float:
    """Return how many standard deviations from the mean of a few samples the end of the interval lies."""
    from scipy.stats import nct, norm

    shift = float(norm.ppf(CONTENT)) * math.sqrt(samples)
    return float(nct.ppf(CONFIDENCE, samples - 1, shift)) / math.sqrt(samples)


def _interval(budget: int, here: float, tried: Sequence[int], own: Floats, values: Floats) -> Interval:
    mean = values.mean(axis=1)
    reach = tolerance_factor(values.shape[1]) * values.std(axis=1, ddof=1)

    def at(ends: Floats) -> float:
        return here + float(np.interp(budget, tried, ends - own))

    return Interval(at(mean), at(mean - reach), at(mean + reach))


def _decibels(errors: Floats) -> Floats:
    found: Floats = -20.0 * np.log10(np.maximum(errors, _SMALLEST))
    return found
