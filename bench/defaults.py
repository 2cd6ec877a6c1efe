"""What the default gives, beside the page of peers: with a profile, learned from one run, and with nothing known.

``python bench/defaults.py``: every case of ``bench/peers`` on its seeds, through ``CachedDenoiser(model, budget=...)``
with no other setting than profile and scheduler; goes on where it stopped. The figures of the page are read from
``bench/results/peers.csv``; SenCache alone is beside fewer steps at as many evaluations.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from cases import SOLVERS, Case, case_of, sampled, uncached

from cachepolicies import CachedDenoiser

RESULTS = Path(__file__).parent / "results"
OUT = RESULTS / "defaults.csv"
FIELDS = ("model", "solver", "known", "budget", "nfe", "mean", "page")
TWINS = ("video_dit_twin", "image_dit_twin", "photo_unet_twin", "sound_transformer_twin")
BUDGETS = (10, 13, 17, 22, 31)
SEEDS = range(3000, 3016)
LEARNED_FROM = [1000]
PAGE = {
    "a profile": "planned, full profile",
    "one run": "planned, one uncached run",
    "nothing": "no profile: uniform, corrected line",
}


def main(models: Sequence[str] = TWINS) -> None:
    """Sample what the file lacks of these models."""
    torch.set_grad_enabled(False)
    page = _page()
    known = _known()
    with OUT.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not known:
            writer.writeheader()
        for model in models:
            for solver in SOLVERS:
                missing = [
                    (what, budget)
                    for what in (*PAGE, "sencache alone")
                    for budget in (BUDGETS if what in PAGE else (0,))
                    if (model, solver, what, str(budget)) not in known
                ]
                case = case_of(model, solver) if missing else None
                if case is None:
                    continue
                reference = uncached(case.workload, SEEDS)
                for what, budget in missing:
                    row = _row(case, reference, what, budget)
                    method = PAGE.get(what)
                    setting = f"uniform:evaluations={budget}" if what == "nothing" else str(budget)
                    if method is not None:
                        row["page"] = page.get((case.workload.name, solver, method, setting), "")
                    writer.writerow({"model": model, "solver": solver, "known": what, "budget": budget, **row})
                    file.flush()


def _row(case: Case, reference: Tensor, what: str, budget: int) -> dict[str, Any]:
    workload = case.workload
    if what == "sencache alone":
        cached = CachedDenoiser(workload.denoiser, policy="sencache", profile=case.profile)
        mean = _psnr(sampled(workload, SEEDS, cached), reference)
        fewer = _psnr(uncached(workload, SEEDS, round(cached.nfe)), reference)
        return {"nfe": f"{cached.nfe:.2f}", "mean": f"{mean:.2f}", "page": f"{fewer:.2f}"}
    with tempfile.TemporaryDirectory() as folder:
        profile = case.profile if what == "a profile" else None
        learn: Any = folder if what == "one run" else False
        cached = CachedDenoiser(
            workload.denoiser, budget=budget, profile=profile, scheduler=workload.scheduler, learn=learn
        )
        if what == "one run":
            sampled(workload, LEARNED_FROM, cached)
        mean = _psnr(sampled(workload, SEEDS, cached), reference)
        return {"nfe": f"{cached.nfe:.2f}", "mean": f"{mean:.2f}"}


def _psnr(pictures: Tensor, reference: Tensor) -> float:
    error = (pictures - reference).double().square().flatten(1).mean(dim=1).clamp_min(1e-10)
    return float((-10.0 * torch.log10(error)).mean())


def _page() -> dict[tuple[str, str, str, str], str]:
    with (RESULTS / "peers.csv").open(newline="") as file:
        return {(r["model"], r["solver"], r["method"], r["setting"]): r["mean"] for r in csv.DictReader(file)}


def _known() -> set[tuple[str, str, str, str]]:
    if not OUT.exists():
        return set()
    with OUT.open(newline="") as file:
        return {(r["model"], r["solver"], r["known"], r["budget"]) for r in csv.DictReader(file)}


if __name__ == "__main__":
    main(sys.argv[1:] or TWINS)
