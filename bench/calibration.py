"""How little calibration is enough: ``python bench/calibration.py MODEL ...``.

Plans are made from parts of a profile that has the weights of all steps of eight samples, and sampled on 24 others.
Every row of ``bench/results/calibration.csv`` is one model, part and number of evaluations, the mean over the draws of
the calibration samples; a model that is there already is left out. Only the models that defaults are chosen on are
looked at.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import attrs
import numpy as np
import torch
from attrs import asdict, frozen
from torch import Tensor

import cachepolicies
import resumed
from cachepolicies import CachedDenoiser, load_profile
from cachepolicies.calibration import weight_steps
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.planning import plan
from cachepolicies.policies import Schedule
from cachepolicies.profiles import Curve, Profile
from cachepolicies.profiles.subset import of_samples
from cachepolicies.reference import workloads
from plans import CHOSEN_ON, itself, pictures

RESULTS = Path(__file__).parent / "results" / "calibration.csv"
BUDGETS = (13, 22)
SEEDS = range(300, 324)
SUBSTITUTE = "linear:time=path,correct=0.8"
STEPS = 50
WEIGHED: dict[str, tuple[int, ...]] = {
    "all": tuple(range(STEPS)),
    "every 5th and the last 5": weight_steps(STEPS, 5),
    "six and the last but one": weight_steps(STEPS),
    "four": (0, 16, 33, 49),
    "three": (0, 25, 49),
}
PARTS = [(samples, weighed) for weighed in WEIGHED for samples in (8, 4, 2, 1)]
_FIRST = (0, 3, 5)
"""First samples of the draws; the others of a draw are every second one from there."""


@frozen
class Row:
    """One model, part of a calibration and number of evaluations; PSNR in dB against the uncached samples."""

    model: str
    samples: int
    weights: str
    calibration_evaluations: int
    evaluations: int
    draws: int
    mean: float
    lowest_tenth: float
    version: str
    torch: str
    machine: str


def part_of(profile: Profile, chosen: Sequence[int], steps: Sequence[int]) -> Profile:
    """Return the profile that a calibration of these samples, with weights at these steps, gives."""
    part = of_samples(profile, chosen)
    whole = part.curves["weight"]
    curve = Curve([whole.t[k] for k in steps], whole.values[list(steps)])
    return attrs.evolve(part, curves={**part.curves, "weight": curve})


def measure(model: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Sample a model uncached, and with plans from every part of its calibration."""
    workload: Workload = getattr(workloads, model)()
    profile = load_profile(Path(__file__).parents[1] / "profiles" / f"{workload.name}.json")
    bare = pictures(workload, seeds, partial(itself, workload.denoiser))
    seen: dict[tuple[int, ...], Tensor] = {}

    def quality(known: Profile, budget: int) -> Tensor:
        made = plan(known, budget, substitute=SUBSTITUTE)
        if made.refreshes not in seen:
            cached = CachedDenoiser(
                workload.denoiser,
                Schedule(plan=made),
                profile=profile,
                substitute=SUBSTITUTE,
                scheduler=workload.scheduler,
            )
            seen[made.refreshes] = psnr(pictures(workload, seeds, partial(itself, cached)), bare)
        return seen[made.refreshes]

    rows = []
    for samples, weighed in PARTS:
        draws = [[*range(8)]] if samples == 8 else [[(first + 2 * j) % 8 for j in range(samples)] for first in _FIRST]
        steps = WEIGHED[weighed]
        for budget in BUDGETS:
            found = [quality(part_of(profile, chosen, steps), budget) for chosen in draws]
            rows.append(
                Row(
                    workload.name,
                    samples,
                    weighed,
                    samples * (3 * STEPS + sum(STEPS - 1 - k for k in steps)),
                    budget,
                    len(draws),
                    round(mean(values.mean().item() for values in found), 3),
                    round(mean(float(np.quantile(values.numpy(), 0.1)) for values in found), 3),
                    cachepolicies.__version__,
                    torch.__version__,
                    platform.machine(),
                )
            )
            print(*list(asdict(rows[-1]).values())[:8], flush=True)
    return rows


if __name__ == "__main__":
    resumed.run(__doc__, Row, CHOSEN_ON, RESULTS, measure)
