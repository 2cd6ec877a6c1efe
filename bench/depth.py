"""Plans in step and depth beside plans in steps alone, at equal FLOPs: ``make bench-depth``.

For every twin of the reference models and every budget, the plan is made and chosen on the calibration seeds, and
judged on others. Every row of ``bench/results/depth.csv`` is one twin and budget; what is there already is left out.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, fields, frozen
from torch import Tensor

import cachepolicies
from cachepolicies import CachedDenoiser, CalibrationSamples, load_profile, sample
from cachepolicies.calibration import measure_places, plan_depth
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.planning import DepthPlan, PlacePart
from cachepolicies.policies import DepthSchedule
from cachepolicies.reference import workloads

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "depth.csv"
SITES = {
    "image_dit_twin": "attention+mlp",
    "sound_transformer_twin": "blocks.*.qkv+blocks.*.out+blocks.*.widen+blocks.*.narrow",
    "photo_unet_twin": "down_blocks.*.resnets.*.conv*+mid_block.resnets.*.conv*+up_blocks.*.resnets.*.conv*",
    "video_dit_twin": "attention+mlp",
}
WORK = (0.26, 0.34, 0.44, 0.62)
CALIBRATION = range(1000, 1012)
REPORTED = range(3000, 3008)


@frozen
class Row:
    """One twin at one budget; PSNR in dB against the uncached samples, the mean over the seeds reported on.

    ``calls`` of the network and the ``computed`` part of the places in them; ``gained`` on the calibration samples;
    ``best_deep`` is that of the best plan with parts of calls that was sampled;
    ``bound_gap`` between the prediction and the smallest possible one, relative.
    """

    model: str
    work: float
    site: str
    places: int
    calls: int
    computed: float
    gained: float
    best_deep: float
    bound_gap: float
    steps_alone: float
    step_and_depth: float
    samples: int
    seconds: float
    version: str


def samples_of(workload: Workload, seeds: Sequence[int]) -> CalibrationSamples:
    """Return the noise and conditioning of some seeds."""
    drawn = workload.draw(seeds)
    return CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=tuple(seeds))


def pictures(workload: Workload, samples: CalibrationSamples, denoiser: Callable[..., Any]) -> Tensor:
    """Return the pictures of runs with a denoiser."""
    made = sample(
        denoiser, workload.scheduler, samples.noise, *samples.args, num_steps=workload.num_steps, **samples.kwargs
    )
    return workload.pictures(made)


def in_steps_alone(plan: DepthPlan, calls: tuple[int, ...]) -> DepthPlan:
    """Return the plan with these calls and every place computed in them."""
    parts = tuple(PlacePart(part.place, part.share, calls) for part in plan.parts)
    return evolve(plan, calls=calls, parts=parts, work=len(calls) / len(plan.timesteps), gained=0.0)


def measured(model: str, wanted: Sequence[float]) -> list[Row]:
    """Return the rows of one twin."""
    workload: Workload = getattr(workloads, model)()
    profile = load_profile(ROOT / "profiles" / f"{workload.name}.json")
    site, steps = SITES[model], workload.num_steps
    chosen_on, judged_on = samples_of(workload, CALIBRATION), samples_of(workload, REPORTED)
    errors = measure_places(workload.denoiser, workload.scheduler, chosen_on, steps, site=site)
    reference = pictures(workload, judged_on, workload.denoiser)
    rows = []
    for work in wanted:
        started = time.monotonic()
        plan = plan_depth(
            profile, workload.denoiser, workload.scheduler, chosen_on, work, site=site, errors=errors, progress=False
        )
        whole = cachepolicies.plan(
            profile, math.floor(work * steps), substitute=plan.output, scheduler=workload.scheduler
        )
        seen = []
        for one in (in_steps_alone(plan, whole.refreshes), plan):
            cached = CachedDenoiser(
                workload.denoiser,
                DepthSchedule(one),
                profile=profile,
                scheduler=workload.scheduler,
            )
            seen.append(psnr(pictures(workload, judged_on, cached), reference).clamp(max=100.0).mean().item())
        computed = sum(len(part.steps) for part in plan.parts) / (len(plan.parts) * len(plan.calls))
        rows.append(
            Row(
                workload.name,
                work,
                site,
                len(plan.parts),
                len(plan.calls),
                round(computed, 4),
                round(plan.gained, 3),
                round(max(plan.gains, default=math.nan), 3),
                round(1 - plan.bound / plan.predicted, 6),
                round(seen[0], 3),
                round(seen[1], 3),
                len(judged_on),
                round(time.monotonic() - started, 1),
                cachepolicies.__version__,
            )
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = [field.name for field in fields(Row)]
    done = set()
    if given.out.exists():
        with given.out.open(newline="") as file:
            done = {(row["model"], float(row["work"])) for row in csv.DictReader(file)}
    else:
        with given.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(names)
    for model in given.models or SITES:
        name = getattr(workloads, model)().name
        missing = [work for work in WORK if (name, work) not in done]
        if not missing:
            continue
        with torch.no_grad():
            for row in measured(model, missing):
                with given.out.open("a", newline="") as file:
                    csv.DictWriter(file, names, lineterminator="\n").writerow(asdict(row))


if __name__ == "__main__":
    main()
