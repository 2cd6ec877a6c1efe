"""The verdict of a comparison, in one sentence: also when caching loses."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachepolicies.comparison.results import Comparison, Result

_LEVEL = 0.5
"""Differences of the mean PSNR below this, in dB, are none: samples differ by more."""


def verdict_of(comparison: Comparison) -> str:
    """Return one sentence: what the best candidate saves at what distance, and how that is beside fewer steps."""
    policies = [result for result in comparison.results if result.kind == "policy"]
    if not policies:
        return f"{comparison.name}: nothing was cached."
    best = max(policies, key=lambda result: _gain(comparison, result))
    gain = _gain(comparison, best)
    steps, taken = comparison.uncached.num_steps, best.mean_nfe
    mean = statistics.fmean(best.psnr)
    near = "exactly the uncached samples" if math.isinf(mean) else f"{mean:.1f} dB from the uncached samples"
    first = f"{best.label} takes {taken:.1f} of {comparison.uncached.mean_nfe:g} evaluations and is {near}"
    if math.isinf(mean) and taken >= comparison.uncached.mean_nfe:
        return f"{comparison.name}: {first}: nothing was saved."
    rival = _rival(comparison, best)
    if rival is None:
        return f"{comparison.name}: {first} (compared with nothing else)."
    other = f"{rival.num_steps} plain steps instead of {steps}"
    if gain > _LEVEL:
        said = f"{gain:.1f} dB nearer than {other}"
    elif gain < -_LEVEL:
        said = f"which is worse than {other}: they are {-gain:.1f} dB nearer; take fewer steps"
    else:
        said = f"no better than {other}"
    failed = f" {len(comparison.failures)} of the candidates failed." if comparison.failures else ""
    return f"{comparison.name}: {first}, {said}.{failed}"


def _rival(comparison: Comparison, result: Result) -> Result | None:
    """Return fewer steps at as many evaluations, those that were matched to the result before others."""
    fewer = [each for each in comparison.results if each.kind == "fewer steps"]
    matched = [each for each in fewer if each.matches == result.label]
    close = [each for each in fewer if abs(each.mean_nfe - result.mean_nfe) <= 1.0]
    return next(iter(matched or close), None)


def _gain(comparison: Comparison, result: Result) -> float:
    """Return how much nearer a result is than fewer steps, in dB; infinitely far behind where there is none."""
    rival = _rival(comparison, result)
    if rival is None:
        return -math.inf
    own, other = (statistics.fmean(each.psnr) for each in (result, rival))
    return 0.0 if math.isinf(own) and math.isinf(other) else own - other
