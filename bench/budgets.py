"""Whether budgets are met: every policy with a threshold, on every reference model, on samples of other seeds.

``python bench/budgets.py [--out bench/results/budgets.csv]``: goes on where it stopped.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cachepolicies import CachedDenoiser, NeedsError, sample
from cachepolicies.base.budget import as_budget
from cachepolicies.comparison import Workload
from cachepolicies.reference import workloads

OUT = Path(__file__).parent / "results" / "budgets.csv"
FIELDS = ("model", "policy", "site", "budget", "wanted", "found")
MODELS = ("video_dit", "image_dit", "photo_unet", "sound_transformer")
BUDGETS = (10, 13, 17, 22, 31, 0.25, 0.4, 0.6)
POLICIES: dict[str, tuple[str, ...]] = {
    "output": ("sencache", "sencache:preset=constant", "sencache:preset=paper", "seacache", "easycache"),
    "blocks": ("teacache:signal=modulated_input", "magcache"),
}
SEEDS = range(2000, 2016)


def main(out: Path = OUT) -> None:
    """Sample what the file lacks."""
    torch.set_grad_enabled(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    known = _known(out)
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not known:
            writer.writeheader()
        for model in (*MODELS, *(f"{name}_twin" for name in MODELS)):
            missing = [each for each in _cases() if (model, each[1], str(each[2])) not in known]
            if not missing:
                continue
            workload: Workload = getattr(workloads, model)()
            for site, policy, budget in missing:
                row = _row(workload, site, policy, budget)
                writer.writerow({"model": model, "policy": policy, "site": site, "budget": budget, **row})
                file.flush()


def _cases() -> Iterator[tuple[str, str, float]]:
    for site, policies in POLICIES.items():
        for policy in policies:
            for budget in BUDGETS:
                yield site, policy, budget


def _row(workload: Workload, site: str, policy: str, budget: float) -> dict[str, Any]:
    """Return the work that was asked for and found, in evaluations of the whole model."""
    drawn = workload.draw(SEEDS)
    steps = workload.num_steps
    asked = as_budget(budget)
    assert asked is not None
    try:
        cached = CachedDenoiser(
            workload.denoiser,
            policy,
            budget=budget,
            profile=workload.name,
            scheduler=workload.scheduler,
            site=site,
            learn=False,
        )
    except NeedsError:  # the model has no signal, or no stack, that the policy looks at
        return {"wanted": "", "found": ""}
    sample(cached, workload.scheduler, drawn.noise, *drawn.args, num_steps=steps, **drawn.kwargs)
    work = cached.trace.work
    whole = isinstance(budget, int)
    found = cached.nfe if whole else steps * (float("nan") if work is None else work)
    return {"wanted": budget if whole else steps * budget, "found": f"{found:.3f}"}


def _known(path: Path) -> set[tuple[str, str, str]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["model"], row["policy"], row["budget"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
