"""One sentence on whether caching paid: the best policy against as many plain steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from cachepolicies.comparison.results import Comparison, Result

LEAST = 0.1
"""Decibels below which a difference of means is none."""
ERRORS = 2.0
"""Standard errors of the mean difference below which it is none."""
CLOSEST = 150.0
"""Decibels that an equal sample counts as, so that it does not decide a mean alone; rounding leaves fewer."""
NEAREST = 0.5
"""Evaluations by which as many plain steps may differ from a policy that they were not matched to."""


@frozen
class Margin:
    """A policy against as many plain steps.

    Attributes:
        policy: its result.
        plain: the plain steps.
        gain: PSNR of the policy - PSNR of the plain steps, mean over the samples, dB.
        differs: whether that is more than the samples scatter.
    """

    policy: Result
    plain: Result
    gain: float
    differs: bool


def verdict_of(comparison: Comparison) -> str:
    policies = [result for result in comparison.results if result.kind == "policy"]
    if not policies:
        return "No policy was compared with the uncached samples."
    reusing = [result for result in policies if result.mean_nfe < result.calls]
    if not reusing:
        return f"{_named(policies)} evaluated every step: nothing was reused, and nothing is gained."
    plain = [result for result in comparison.results if result.kind == "fewer steps"]
    margins = [margin for result in reusing if (margin := _margin(result, plain)) is not None]
    if not margins:
        best = max(reusing, key=_quality)
        return f"{_opening(comparison, best)}; it was not compared with fewer steps."
    best_margin = max(margins, key=lambda margin: (margin.gain, -margin.policy.mean_nfe))
    return f"{_opening(comparison, best_margin.policy)}, {_against(best_margin)}{_even(comparison, best_margin)}."


def _margin(result: Result, plain: Sequence[Result]) -> Margin | None:
    """Return a policy against the plain steps that were matched to it, or else against some that do as much work."""
    cost = result.mean_nfe if math.isnan(result.work) else result.work
    near = [other for other in plain if abs(other.mean_nfe - cost) <= NEAREST]
    chosen = [other for other in plain if other.matches == result.label] or sorted(
        near, key=lambda other: abs(other.mean_nfe - cost)
    )
    if not chosen or any(math.isnan(value) for each in (result, chosen[0]) for value in each.psnr):
        return None
    return _compared(result, chosen[0])


def _compared(result: Result, plain: Result) -> Margin:
    differences = [own - other for own, other in zip(_capped(result), _capped(plain), strict=True)]
    gain = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return Margin(result, plain, gain, abs(gain) >= max(LEAST, ERRORS * error))


def _opening(comparison: Comparison, result: Result) -> str:
    of = "steps" if result.calls == result.num_steps else "evaluations"
    speed = ""
    if comparison.doubt(result) is None:
        ratio = comparison.speed_up(result)
        speed = f", is {ratio:.1f} times as fast" if ratio >= 1 else f", yet takes {1 / ratio:.1f} times as long"
    equal = all(math.isinf(value) for value in result.psnr)
    at = "gives equal samples" if equal else f"is at {_quality(result):.1f} dB"
    return f"{result.label} evaluates {_number(result.mean_nfe)} of {result.calls} {of}{speed} and {at}"


def _against(margin: Margin) -> str:
    steps = f"{margin.plain.num_steps} plain {'step' if margin.plain.num_steps == 1 else 'steps'}"
    if not margin.differs:
        return f"no nearer to the uncached samples than {steps}: nothing is gained over simply taking fewer steps"
    if all(math.isinf(value) for value in margin.policy.psnr):
        return f"which {steps} do not"
    if margin.gain > 0:
        return f"{margin.gain:.1f} dB nearer to the uncached samples than {steps}"
    worse = "it is worse than simply taking fewer steps"
    return f"{-margin.gain:.1f} dB farther from the uncached samples than {steps}: {worse}"


def _even(comparison: Comparison, margin: Margin) -> str:
    """Return a clause where evenly spaced reuse at as many evaluations does better than the policy."""
    even = [each for each in comparison.results if each.kind == "uniform" and each.matches == margin.policy.label]
    if not even or any(math.isnan(value) for value in even[0].psnr):
        return ""
    ahead = _compared(even[0], margin.policy)
    if not ahead.differs or ahead.gain < 0:
        return ""
    return f"; evenly spaced reuse does better, at {_quality(even[0]):.1f} dB"


def _quality(result: Result) -> float:
    return statistics.fmean(_capped(result))


def _capped(result: Result) -> list[float]:
    return [min(value, CLOSEST) for value in result.psnr]


def _named(results: Sequence[Result]) -> str:
    return results[0].label if len(results) == 1 else f"Each of the {len(results)} policies"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
