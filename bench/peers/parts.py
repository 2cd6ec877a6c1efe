"""Methods that reuse parts of a network, from the packages ``plugins/cachepolicies-classics`` and ``-drafts``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from cases import CALIBRATION, Case
from entry import Entry, Run
from ours import cached_by

from cachepolicies import CalibrationSamples, Substitute
from cachepolicies.adapters import adapter_of, blocks_of
from cachepolicies.comparison import Workload
from cachepolicies.substitutes import Taylor
from cachepolicies_classics import (
    FORA,
    L2C,
    PAB,
    DeepCache,
    DeltaDiT,
    FasterCache,
    HoldingErrors,
    LastChange,
    holding_errors,
)
from cachepolicies_drafts import (
    Aligned,
    Bands,
    DBCache,
    DiCache,
    FirstBlock,
    FoCa,
    FoCaCache,
    FreqCa,
    MeanCache,
    SpeCa,
)

THRESHOLDS = (0.05, 0.1, 0.2, 0.4, 0.8)


def of_kinds() -> list[Entry]:
    """Return the methods that cut at attention and MLPs, for transformers whose adapter says where these are."""
    found = [_entry("FORA", FORA(every=every)) for every in (2, 3, 4, 6)]
    for every in (2, 3, 4, 6):
        found.append(_entry("PAB", PAB(spatial=every, temporal=None, cross=2 * every, window=(100.0, 850.0))))
        found.append(_entry("PAB, no window", PAB(spatial=every, cross=2 * every, window=(0.0, 1e9))))
    for start, every in ((0.32, 2), (0.32, 3), (0.2, 2), (0.2, 4)):
        weight = LastChange(weight=0.5 if every == 2 else 0.3)
        found.append(_entry("FasterCache attention", FasterCache(start_after=start, every=every), weight))
    found += [_by_errors(part) for part in (0.25, 0.5, 0.75, 1.0)]
    return found


def of_ranges() -> list[Entry]:
    """Return the methods that cut between the blocks, for any transformer."""
    found = [_deep("Delta-DiT", every, fraction) for every in (2, 3, 5) for fraction in (0.5, 0.75)]
    found += [_entry("FirstBlockCache", FirstBlock(threshold=value)) for value in THRESHOLDS]
    for value in THRESHOLDS:
        found.append(_entry("DBCache F1B1", DBCache(first=1, last=1, threshold=value)))
        found.append(_entry("DBCache F1B0, linear", DBCache(first=1, threshold=value), "linear"))
    for value in (0.1, 0.2, 0.4, 0.8, 1.6):
        found.append(_entry("DiCache", DiCache(threshold=value), Aligned()))
    for base in (0.3, 1.0, 3.0, 7.0):
        draft = Taylor(order=2, differences="taylorseer", time="index")
        found.append(_entry("SpeCa", SpeCa(base=base, decay=0.3, unverified=1, most=6), draft))
    return found


def of_forecasts() -> list[Entry]:
    """Return the methods that compute every n-th step and forecast the stack in between, for any transformer."""
    found = []
    for every in (2, 3, 4, 6):
        found.append(_entry("FoCa", FoCaCache(every=every), FoCa()))
        found.append(_entry("FoCa, slope of a step", FoCaCache(every=every), FoCa(slope="step")))
        found.append(_entry("FreqCa", FreqCa(every=every), Bands()))
        found.append(_entry("FreqCa, quadratic", FreqCa(every=every), Bands(high="quadratic")))
    return found


def on_velocities() -> list[Entry]:
    """Return the method that continues the guided velocity of flow matching, by its published plans of 50 steps."""
    policies = [MeanCache(plan=plan, window=window) for plan in (10, 17, 25) for window in (2, 3, 4)]
    return [_entry("MeanCache", policy, policy.substitute) for policy in policies]


def below_a_branch() -> list[Entry]:
    """Return the method for U-Nets."""
    found = []
    for branch in (0, 1, 2, 3):
        found += [_entry("DeepCache", DeepCache(interval=every, branch=branch)) for every in (2, 3, 5, 8)]
        keys = [DeepCache(interval=every, branch=branch, center=15, power=1.4) for every in (2, 3, 5)]
        found += [_entry("DeepCache, dense keys", one) for one in keys]
    return found


@cache
def _errors(workload: Workload) -> HoldingErrors:
    """Return what holding each module does, on the samples of the calibrations."""
    drawn = workload.draw(CALIBRATION)
    samples = CalibrationSamples(drawn.noise, drawn.args, drawn.kwargs, seeds=tuple(CALIBRATION))
    return holding_errors(workload.denoiser, workload.scheduler, samples, num_steps=workload.num_steps)


def _by_errors(part: float) -> Entry:
    """Return Learning-to-Cache with a mask from errors, which saves a part of the most that pairs of steps can."""

    def run(case: Case, seeds: Sequence[int]) -> Run:
        errors = _errors(case.workload)
        mask = errors.mask(1.0 - part * (1.0 - errors.least_work))
        return cached_by(case, seeds, L2C(mask), "hold", None, None)

    return Entry("L2C, calibrated errors", f"{part:.0%} of what pairs save", run)


def _deep(method: str, every: int, fraction: float) -> Entry:
    """Return Delta-DiT with a part of a model's blocks."""

    def run(case: Case, seeds: Sequence[int]) -> Run:
        network: Any = getattr(case.workload.denoiser, "network", case.workload.denoiser)
        depth = len(blocks_of(network, adapter_of(network)))
        blocks = min(max(round(fraction * depth), 1), depth - 1)
        return cached_by(case, seeds, DeltaDiT(every=every, blocks=blocks), "hold", None, None)

    return Entry(method, f"every={every}, {fraction:.0%} of the blocks", run)


def _entry(method: str, policy: Any, substitute: str | Substitute = "hold") -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        return cached_by(case, seeds, policy, substitute, None, None)

    return Entry(method, repr(policy), run)
