"""What plans give on samples they were not made from: ``make bench-plans``, or ``python bench/plans.py MODEL ...``.

A plan is made from the eight calibration samples of a model's profile and sampled on 64 others. *before* is the plan of
version 0.1: the sum of the weighted errors, mean weights, the line along the path. *now* is `best_plan`: the default of
today, with the same line corrected by 0.8, by 0.5 or not at all, as the trials in the profile say. Every row of
``bench/results/plans.csv`` is one model, plan and number of evaluations; a model that is there already is left out, so
that the study goes on where it stopped.

A sample counts as *unstable* in a row if the uncached sample moves at least as far as the cached one is off when its
first output is changed at random by an RMS of 1e-3.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict, frozen
from torch import Tensor

import cachepolicies
import resumed
from cachepolicies import CachedDenoiser, load_profile, sample
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.planning import Plan, best_plan, plan
from cachepolicies.policies import Schedule
from cachepolicies.profiles import Profile
from cachepolicies.reference import workloads

RESULTS = Path(__file__).parent / "results" / "plans.csv"
BUDGETS = (13, 17, 22, 31)
SEEDS = range(2000, 2064)
"""Apart from the calibration's, 1000 to 1007, and from those by which the defaults were chosen, below 400."""

BATCH = 16
BEFORE: dict[str, Any] = {"objective": "sum", "weights": "measured", "substitute": "linear:time=path"}
PLANS: dict[str, Callable[[Profile, int], Plan]] = {
    "before": lambda profile, budget: plan(profile, budget, **BEFORE),
    "now": best_plan,
}
MODELS = ("video_dit", "image_dit", "photo_unet", "sound_transformer")
CHOSEN_ON, REPORTED_ON = MODELS, tuple(f"{model}_twin" for model in MODELS)
_CHANGE = 1e-3


@frozen
class Row:
    """One model, plan and number of evaluations; PSNR in dB against the uncached samples."""

    model: str
    plan: str
    substitute: str
    evaluations: int
    samples: int
    mean: float
    lowest_tenth: float
    worst: float
    unstable: int
    worst_stable: float
    steps: str
    version: str
    torch: str
    machine: str


def measure(model: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Sample a model uncached, changed at the first output, and with every plan."""
    workload: Workload = getattr(workloads, model)()
    profile = load_profile(Path(__file__).parents[1] / "profiles" / f"{workload.name}.json")
    bare = pictures(workload, seeds, partial(itself, workload.denoiser))
    moved = psnr(pictures(workload, seeds, partial(_changed, workload)), bare)
    rows = []
    for budget in BUDGETS:
        for name, planned in PLANS.items():
            made = planned(profile, budget)
            cached = CachedDenoiser(
                workload.denoiser,
                Schedule(plan=made),
                profile=profile,
                substitute=made.substitute,
                scheduler=workload.scheduler,
            )
            quality = psnr(pictures(workload, seeds, partial(itself, cached)), bare)
            unstable = moved <= quality
            stable = quality[~unstable]
            rows.append(
                Row(
                    workload.name,
                    name,
                    made.substitute,
                    made.evaluations,
                    len(seeds),
                    round(quality.mean().item(), 3),
                    round(float(np.quantile(quality.numpy(), 0.1)), 3),
                    round(quality.min().item(), 3),
                    int(unstable.sum()),
                    round(stable.min().item(), 3) if len(stable) else float("nan"),
                    " ".join(map(str, made.refreshes)),
                    cachepolicies.__version__,
                    torch.__version__,
                    platform.machine(),
                )
            )
            print(*list(asdict(rows[-1]).values())[:9], flush=True)
    return rows


def pictures(workload: Workload, seeds: Sequence[int], denoiser: Callable[[], Callable[..., object]]) -> Tensor:
    """Return the pictures of runs with a denoiser that is made anew for every batch."""
    parts = []
    for start in range(0, len(seeds), BATCH):
        inputs = workload.draw(seeds[start : start + BATCH])
        latents = sample(
            denoiser(), workload.scheduler, inputs.noise, *inputs.args, num_steps=workload.num_steps, **inputs.kwargs
        )
        parts.append(workload.pictures(latents))
    return torch.cat(parts)


def itself(denoiser: Callable[..., object]) -> Callable[..., object]:
    """Return a denoiser that is the same in every batch."""
    return denoiser


def _changed(workload: Workload) -> Callable[..., object]:
    """Return the denoiser with its first output changed at random."""
    calls = 0

    def denoise(x: Tensor, t: Tensor, *args: object, **kwargs: object) -> object:
        nonlocal calls
        output = workload.denoiser(x, t, *args, **kwargs)
        calls += 1
        if calls > 1:
            return output
        return output + _CHANGE * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))

    return denoise


if __name__ == "__main__":
    resumed.run(__doc__, Row, [*REPORTED_ON, *CHOSEN_ON], RESULTS, measure)
