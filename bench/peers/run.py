"""Caches side by side at equal work: ``make bench-peers``; or a few models, ``python bench/peers/run.py MODEL ...``.

diffusers' own caches, cache-dit, hicache-pp and this library, each swept over its settings, on the twins of the
reference models with several solvers. The work is the part of the uncached run's FLOPs that was executed. Every row of
``bench/results/peers.csv`` is one case, method and setting; what is there already is left out. ``--short`` takes four
samples of the sound and image twins, into a file of its own.
"""

from __future__ import annotations

import argparse
import csv
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers
import numpy as np
import of_cache_dit
import of_diffusers
import of_hicache
import ours
import parts
import torch
from attrs import asdict, fields, frozen
from cases import OWN, SOLVERS, Case, case_of, exact, moved, uncached
from entry import Entry, Run

import cachepolicies
from cachepolicies.comparison.metrics import psnr

RESULTS = Path(__file__).parents[1] / "results" / "peers.csv"
MODELS = ("sound_transformer_twin", "image_dit_twin", "photo_unet_twin", "video_dit_twin")
SHORT = (("sound_transformer_twin", SOLVERS[:2]), ("image_dit_twin", (OWN,)))
SEEDS = range(3000, 3016)
HIGHEST = 100.0
NOT_SERVED = ("AttributeError", "TypeError", "ValueError", "RuntimeError", "KeyError", "IndexError")
"""What a peer may raise on a model that it does not know; it is a row of its own, without figures."""

Key = tuple[str, str, str, str]


@frozen
class Row:
    """One case, method and setting; PSNR in dB against the uncached samples of the same solver.

    ``exact`` is the mean PSNR against the end of the differential equation. ``unstable`` counts the samples that a
    random change of RMS 1e-3 of the first output moves at least as far. ``failed`` says why there are no figures.
    """

    model: str
    solver: str
    method: str
    setting: str
    work: float
    samples: int
    mean: float
    lowest_tenth: float
    worst: float
    unstable: int
    exact: float
    failed: str
    versions: str
    machine: str


def entries(case: Case) -> list[Entry]:
    """Return all methods that can be tried on a case."""
    found = ours.entries() + ours.published() + of_hicache.entries()
    if case.model.startswith(("video", "image")):
        found += ours.in_blocks() + of_diffusers.entries() + of_cache_dit.entries()
        found += parts.of_kinds()
    found += parts.below_a_branch() if case.model.startswith("photo") else parts.of_ranges() + parts.of_forecasts()
    if case.workload.scheduler.family == "flow":
        found += parts.on_velocities()
    return found


def measure(case: Case, done: set[Key], seeds: Sequence[int], part: tuple[int, int] = (0, 1)) -> Iterator[Row]:
    """Sample what a case lacks."""
    name = case.workload.name
    missing = [e for e in entries(case) if (name, case.solver, e.method, e.setting) not in done]
    everything = Entry("uncached", "all", lambda c, s: Run(uncached(c.workload, s), 1.0))
    if (name, case.solver, everything.method, everything.setting) not in done:
        missing.insert(0, everything)
    missing = missing[part[0] :: part[1]]
    if not missing:
        return
    reference = uncached(case.workload, seeds)
    solution = exact(case.model, tuple(seeds))
    away = psnr(moved(case.workload, seeds), reference)
    versions = (
        f"cachepolicies {cachepolicies.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"{of_cache_dit.versions()}, {of_hicache.versions()}"
    )
    for entry in missing:
        own = not entry.method.startswith(("diffusers", "cache-dit", "hicache"))
        failed, figures = "", (float("nan"),) * 5
        unstable = 0
        try:
            made = entry.sample(case, seeds)
        except Exception as error:
            if own or type(error).__name__ not in NOT_SERVED:
                raise
            failed = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        else:
            quality = psnr(made.pictures, reference).clamp(max=HIGHEST)
            unstable = int(((away <= quality) & (quality < HIGHEST)).sum())
            figures = (
                round(made.work, 4),
                round(quality.mean().item(), 3),
                round(float(np.quantile(quality.numpy(), 0.1)), 3),
                round(quality.min().item(), 3),
                round(psnr(made.pictures, solution).clamp(max=HIGHEST).mean().item(), 3),
            )
        work, mean, lowest, worst, near = figures
        yield Row(
            name, case.solver, entry.method, entry.setting, work, len(seeds), mean, lowest, worst, unstable, near,
            failed, versions, platform.machine(),
        )  # fmt: skip


def main() -> None:
    """Measure what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--solver", choices=SOLVERS, action="append", help="One of the solvers; all by default.")
    parser.add_argument("--short", action="store_true", help="four samples of two models, into peers-short.csv")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th entry, from I"
    )
    given = parser.parse_args()
    out = given.out or (RESULTS.with_name("peers-short.csv") if given.short else RESULTS)
    chosen = [(model, tuple(given.solver or SOLVERS)) for model in given.models or MODELS]
    if given.short and not given.models:
        chosen = list(SHORT)
    seeds = SEEDS[:4] if given.short else SEEDS
    names = [field.name for field in fields(Row)]
    done: set[Key] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        with out.open(newline="") as file:
            done = {(row["model"], row["solver"], row["method"], row["setting"]) for row in csv.DictReader(file)}
    else:
        with out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(names)
    logging.getLogger("cachepolicies").setLevel(logging.ERROR)
    for model, solvers in chosen:
        for solver in solvers:
            started = time.monotonic()
            case = case_of(model, solver)
            if case is None:
                print(f"{model}: no scheduler for {solver}", flush=True)
                continue
            with torch.no_grad():
                for row in measure(case, done, seeds, tuple(given.part)):
                    with out.open("a", newline="") as file:
                        csv.DictWriter(file, names, lineterminator="\n").writerow(asdict(row))
                    print(*list(asdict(row).values())[:12], flush=True)
            print(f"{model}, {solver}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
