"""Plans asked for a quality, on samples that nothing was made from: ``python bench/targets.py MODEL ...``.

A plan is asked for a PSNR, solved with the trials in the model's profile, and sampled on 64 other samples. Every row of
``bench/results/targets.csv`` is one model and target; a model that is there already is left out.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from attrs import asdict, frozen

import cachepolicies
import resumed
from cachepolicies import CachedDenoiser, load_profile
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.planning import plan
from cachepolicies.planning.expectation import MARGIN
from cachepolicies.policies import Schedule
from cachepolicies.reference import workloads
from plans import CHOSEN_ON, REPORTED_ON, itself, pictures

RESULTS = Path(__file__).parent / "results" / "targets.csv"
TARGETS = (35, 40, 45, 50, 55, 60)
SEEDS = range(4000, 4064)
HIGHEST = 150.0
"""The PSNR, in dB, of what is the uncached sample to the last bit."""

SUBSTITUTE = "linear:time=path,correct=0.8"


@frozen
class Row:
    """One model and target; PSNR in dB against the uncached samples."""

    model: str
    target: float
    evaluations: int
    expected: float
    expected_low: float
    samples: int
    mean: float
    lowest_tenth: float
    worst: float
    missed: float
    """Part of the samples that are more than 3 dB below the target."""

    steps: str
    version: str
    torch: str
    machine: str


def measure(model: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Sample a model uncached, and with a plan for every target."""
    workload: Workload = getattr(workloads, model)()
    profile = load_profile(Path(__file__).parents[1] / "profiles" / f"{workload.name}.json")
    bare = pictures(workload, seeds, partial(itself, workload.denoiser))
    rows = []
    for target in TARGETS:
        made = plan(profile, target=f"{target}dB", substitute=SUBSTITUTE)
        cached = CachedDenoiser(
            workload.denoiser,
            Schedule(plan=made),
            profile=profile,
            substitute=SUBSTITUTE,
            scheduler=workload.scheduler,
        )
        quality = psnr(pictures(workload, seeds, partial(itself, cached)), bare).clamp(max=HIGHEST)
        expected = None if made.expected is None else made.expected.psnr
        rows.append(
            Row(
                workload.name,
                target,
                made.evaluations,
                float("nan") if expected is None else round(expected.mean, 3),
                float("nan") if expected is None else round(expected.low, 3),
                len(seeds),
                round(quality.mean().item(), 3),
                round(float(np.quantile(quality.numpy(), 0.1)), 3),
                round(quality.min().item(), 3),
                round((quality < target - MARGIN).double().mean().item(), 4),
                " ".join(map(str, made.refreshes)),
                cachepolicies.__version__,
                torch.__version__,
                platform.machine(),
            )
        )
        print(*list(asdict(rows[-1]).values())[:10], flush=True)
    return rows


if __name__ == "__main__":
    resumed.run(__doc__, Row, [*REPORTED_ON, *CHOSEN_ON], RESULTS, measure)
