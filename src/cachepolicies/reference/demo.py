"""The demonstration: ``python -m cachepolicies.reference.demo``.

It samples 16 guided videos with the trained video DiT: uncached, by default at three budgets, and beside each of them
fewer steps at as many evaluations and diffusers' own SeaCache at about as many. It prints verdict and table, and writes
``report.html``, ``table.csv`` and ``table.json``. With ``--all`` it goes on to every method: SenCache at three
settings, plans and SenCache with eps(t) for three substitutes, and four methods at the block stack, on 32 videos.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from cachepolicies.base.console import wide_console
from cachepolicies.base.errors import CachePoliciesError
from cachepolicies.comparison import Candidate, Workload, compare
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison.report import write_all
from cachepolicies.comparison.results import CandidateKind
from cachepolicies.planning import plan
from cachepolicies.policies import Schedule
from cachepolicies.profiles.load import load_profile
from cachepolicies.reference.of_diffusers import DiffusersSeaCache
from cachepolicies.reference.workloads import STEPS, video_dit

PROFILE = "video-dit"
"""The shipped profile of the trained video DiT."""

POLICIES = {
    "SenCache, careful": "sencache:epsilon=0.2,max_reuse=3",
    "SenCache, medium": "sencache:epsilon=0.4,max_reuse=5",
    "SenCache, bold": "sencache:epsilon=0.6,max_reuse=8,epsilon_start=0.1",
}
"""Label to setting, from the most careful to the boldest; what is held is the denoiser's output."""

BUDGET = 22
"""Evaluations of the planned rows, those of the middle setting."""

PATH = "linear:time=path"
"""Extrapolates along the calibrated path of the output."""

CORRECTED = "linear:time=path,correct=0.8"
"""The same, and the next evaluation makes up for most of the error of what stood in before it."""

AT_BLOCKS = {
    "SenCache at blocks": "sencache:epsilon=0.4,max_reuse=5",
    "TeaCache at blocks": "teacache:threshold=0.045,signal=modulated_input",
    "MagCache at blocks": "magcache:threshold=0.055,max_reuse=3",
    "uniform (22) at blocks": "uniform:evaluations=22",
}
"""Label to setting, all with about the evaluations of the middle one; what is held is the residual of the blocks."""

BUDGETS = (0.26, 0.34, 0.44)
"""Of the default, parts of the work; the thresholds of diffusers' SeaCache beside them take about as much."""

THRESHOLDS = (1.0, 0.5, 0.25)

SAMPLES, SAMPLES_OF_ALL = 16, 32
OUT = Path("demo")


def first() -> list[Candidate]:
    """Return the default at three budgets, each with diffusers' SeaCache at about as many evaluations."""
    rows = []
    for budget, threshold in zip(BUDGETS, THRESHOLDS, strict=True):
        label, steps = f"budget={budget}", round(budget * STEPS)
        rows.append(Candidate(label, "best", budget=budget, profile=PROFILE, baselines=False))
        rows.append(Candidate(f"fewer steps ({steps})", num_steps=steps, matches=label))
        rows.append(
            Candidate(f"SeaCache of diffusers ({threshold})", foreign=partial(_sea_cache, threshold), matches=label)
        )
    return rows


def _sea_cache(threshold: float, workload: Workload) -> DiffusersSeaCache:
    return DiffusersSeaCache(workload.denoiser, workload.scheduler, threshold)


def everything() -> list[Candidate]:
    """Return every method."""
    return [
        *(Candidate(label, policy, profile=PROFILE) for label, policy in POLICIES.items()),
        *planned(),
        *(
            Candidate(
                label,
                "uniform" if label.startswith("uniform") else policy,
                profile=PROFILE,
                site="blocks",
                substitute="hold",
                baselines=False,
                budget=BUDGET if label.startswith("uniform") else None,
                kind=_kind(policy),
            )
            for label, policy in AT_BLOCKS.items()
        ),
    ]


def planned() -> list[Candidate]:
    """Return the rows that are solved for: a plan and SenCache with eps(t), each with three substitutes."""
    profile = load_profile(PROFILE)
    rows = []
    for substitute, suffix in (("hold", ""), (PATH, ", linear along path"), (CORRECTED, ", the same, corrected")):
        schedule = Schedule(plan=plan(profile, BUDGET, substitute=substitute))
        for label, policy in (("schedule", schedule), ("SenCache, eps(t)", f"sencache:epsilon=optimal:nfe={BUDGET}")):
            rows.append(
                Candidate(
                    f"{label} ({BUDGET}){suffix}", policy, profile=profile, substitute=substitute, baselines=False
                )
            )
    return rows


def _kind(policy: str) -> CandidateKind:
    return "uniform" if policy.startswith("uniform") else "policy"


def _announcement(workload: Workload, samples: int, repeats: int, candidates: Sequence[Candidate]) -> str:
    """Return how long it will take, from one timed evaluation."""
    drawn = workload.draw(range(samples))
    run = workload.scheduler.begin(workload.num_steps)
    given, t = run.model_input(workload.scheduler.initial(drawn.noise, workload.num_steps))
    with torch.no_grad():
        workload.denoiser(given, t, *drawn.args)  # threads and kernels are set up
        start = time.perf_counter()
        workload.denoiser(given, t, *drawn.args)
    each = time.perf_counter() - start
    # uncached twice and once more with a changed output; a candidate takes about half with its baselines on top
    evaluations = workload.num_steps * (3 + 0.5 * len(candidates) * repeats)
    minutes = evaluations * each / 60
    return f"{len(candidates)} ways of sampling {samples} videos, and their baselines: about {minutes:.1f} minutes"


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration and return the exit code."""
    parser = argparse.ArgumentParser(description="Sample the trained video DiT with fewer evaluations, and compare.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of report.html, table.csv and table.json")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--repeats", type=int, default=1, help="how often everything is timed")
    parser.add_argument("--all", action="store_true", help="every method, on 32 samples: some ten minutes")
    given = parser.parse_args(arguments)
    samples = given.samples or (SAMPLES_OF_ALL if given.all else SAMPLES)
    errors = Console(stderr=True)
    try:
        check_installed("torchmetrics", "matplotlib", "jinja2")
        workload = video_dit()
        candidates = everything() if given.all else first()
        errors.print(_announcement(workload, samples, given.repeats, candidates), highlight=False)
        comparison = compare(
            workload, candidates, range(samples), repeats=given.repeats, audited=8 if given.all else 0, console=errors
        )
        wide_console().print(comparison.verdict(), highlight=False, soft_wrap=True)
        wide_console().print(comparison.table())
        for path in write_all(comparison, given.out):
            print(path)
    except CachePoliciesError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
