"""The setting of each rule that takes a given number of evaluations, found on the calibration runs alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from cachepolicies import Profile, Substitute
from cachepolicies.planning.simulate import mean_evaluations
from cachepolicies.policies import MagCache, SenCache, TeaCache
from cachepolicies.scores import score_of
from cachepolicies.scores.displacement import Displacement

STRICT, STRICT_FRACTION = 0.01, 0.2
"""SenCache's stricter tolerance of the first fifth (arXiv 2602.24208)."""

RETENTION = 0.2
"""Fraction of the steps in which MagCache reuses nothing (arXiv 2506.09045)."""

STREAKS = (3, 5, 8, 12)
"""Largest numbers of reuses in a row that are tried, the smallest first: all the authors' settings lie among them."""

SIGNAL: Literal["modulated_input"] = "modulated_input"
_CLOSE = 1.0


def sencache(profile: Profile, substitute: Substitute, budget: int) -> SenCache | None:
    """Return SenCache with a constant tolerance and a strict first fifth; ``None`` if nothing comes near the budget."""
    steps = profile.num_steps
    score = score_of("substitute", profile, substitute)
    displacement = Displacement(profile).table(profile.timesteps)
    strict = round(STRICT_FRACTION * steps)

    def evaluations(epsilon: float, streak: int) -> float:
        tolerance = [min(STRICT, epsilon)] * strict + [epsilon] * (steps - strict)
        return mean_evaluations(score, tolerance, profile.timesteps, displacement, streak)

    found = _setting(evaluations, budget, steps)
    return None if found is None else SenCache(epsilon=found[0], max_reuse=found[1])


def teacache(profile: Profile, budget: int) -> TeaCache | None:
    """Return TeaCache with the profile's polynomial, or ``None``."""
    estimates = np.polyval(profile.polynomials[SIGNAL].coefficients, profile.tables[f"signal_change.{SIGNAL}"])

    def evaluations(threshold: float, streak: int) -> float:
        counts = []
        for sample in estimates.T:
            count, total = 2, 0.0  # the first and the last step are always evaluated
            for estimate in sample[:-1]:
                total += estimate
                if not total < threshold:
                    count, total = count + 1, 0.0
            counts.append(count)
        return float(np.mean(counts))

    found = _setting(evaluations, budget, profile.num_steps, streaks=())
    return None if found is None else TeaCache(threshold=found[0], signal=SIGNAL)


def magcache(profile: Profile, budget: int) -> MagCache | None:
    """Return MagCache with the profile's ratios, or ``None``."""
    ratios = profile.tables["magnitude_ratio"].mean(axis=1)
    kept = math.floor(RETENTION * profile.num_steps + 0.5)

    def evaluations(threshold: float, streak: int) -> float:
        count, product, total, reused = 1, 1.0, 0.0, 0
        for step in range(1, len(ratios)):
            product *= ratios[step]
            total += abs(1.0 - product)
            if step >= kept and total <= threshold and reused < streak:
                reused += 1
            else:
                count, product, total, reused = count + 1, 1.0, 0.0, 0
        return float(count)

    found = _setting(evaluations, budget, profile.num_steps)
    if found is None:
        return None
    return MagCache(threshold=found[0], max_reuse=found[1], retention_ratio=RETENTION)


def _setting(
    evaluations: Callable[[float, int], float], budget: int, steps: int, streaks: tuple[int, ...] = STREAKS
) -> tuple[float, int] | None:
    """Return threshold and streak that come nearest to the budget, with the shortest streak that comes within one."""
    for streak in (*streaks, steps):
        low, high = -14.0, 7.0
        if evaluations(math.exp(high), streak) > budget + _CLOSE:
            continue
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if evaluations(math.exp(middle), streak) > budget else (low, middle)
        best = min((high, low), key=lambda log: abs(evaluations(math.exp(log), streak) - budget))
        if abs(evaluations(math.exp(best), streak) - budget) <= _CLOSE:
            return math.exp(best), streak
    return None
