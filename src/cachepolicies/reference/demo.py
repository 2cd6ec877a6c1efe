"""The demonstration: ``python -m cachepolicies.reference.demo``.

It samples 32 guided videos with the trained video DiT: uncached, with SenCache at three settings, and, at the
evaluations each of them took, with fewer steps and with evenly spaced reuse. Then what is solved for rather than tuned,
at the evaluations of the middle setting: a plan's refreshes and SenCache with eps(t), holding, extrapolating, and
extrapolating with a correction at the next evaluation. Last SenCache, TeaCache, MagCache and evenly spaced reuse with
the residual of the block stack. It says first how long that takes, prints the table and the verdict, and writes
``report.html``, ``table.csv`` and ``table.json``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
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
from cachepolicies.reference.workloads import video_dit

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

SAMPLES = 32
BATCH = 32
AUDITED = 8
OUT = Path("demo")


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


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _kind(policy: str) -> CandidateKind:
    return "uniform" if policy.startswith("uniform") else "policy"


def candidates() -> list[Candidate]:
    """Return all rows but the uncached one and the matched baselines."""
    return [
        *(Candidate(label, policy, profile=PROFILE) for label, policy in POLICIES.items()),
        *planned(),
        *(
            Candidate(label, policy, profile=PROFILE, site="blocks", baselines=False, kind=_kind(policy))
            for label, policy in AT_BLOCKS.items()
        ),
    ]


def expected_evaluations(rows: Sequence[Candidate], steps: int, samples: int, repeats: int) -> float:
    """Return about how many evaluations of a batch the comparison takes: every row with those of the middle setting.

    The uncached samples are drawn once more for the times and once for the stability, the audited ones of every policy
    with all steps.
    """
    budgeted = sum(3 if row.baselines else 1 for row in rows)
    batches = math.ceil(samples / BATCH)
    audited = sum(row.kind == "policy" for row in rows) * steps * min(AUDITED, samples) / min(BATCH, samples)
    return batches * (repeats * (steps + budgeted * BUDGET) + 2 * steps) + audited


def seconds_of_an_evaluation(workload: Workload, samples: int) -> float:
    """Return how long one evaluation of a batch takes: the median of five, after one that sets up what they need."""
    inputs = workload.draw(range(min(BATCH, samples)))
    t = torch.full((len(inputs),), 500.0)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            workload.denoiser(inputs.noise, t, *inputs.args, **inputs.kwargs)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def forecast(seconds: float, evaluations: float) -> str:
    """Return in one line how long the comparison will take."""
    total = seconds * evaluations
    about = f"{total / 60:.0f} minutes" if total >= 90 else f"{max(total, 2):.0f} seconds"
    return (
        f"this takes about {about}: {evaluations:.0f} evaluations of a batch, {seconds:.2f} s each on this machine now"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration and return the exit code."""
    parser = argparse.ArgumentParser(description="Sample the trained video DiT with fewer evaluations, and compare.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of report.html, table.csv and table.json")
    parser.add_argument("--samples", type=_positive, default=SAMPLES)
    parser.add_argument("--repeats", type=_positive, default=1, help="how often everything is timed")
    given = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        check_installed("torchmetrics", "matplotlib", "jinja2")
        workload, rows = video_dit(), candidates()
        expected = expected_evaluations(rows, workload.num_steps, given.samples, given.repeats)
        line = forecast(seconds_of_an_evaluation(workload, given.samples), expected)
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
        comparison = compare(
            workload,
            rows,
            range(given.samples),
            batch_size=BATCH,
            repeats=given.repeats,
            audited=AUDITED,
            console=errors,
        )
        console = wide_console()
        console.print(comparison.table())
        console.print(comparison.verdict(), markup=False, highlight=False)
        for path in write_all(comparison, given.out):
            print(path)
    except CachePoliciesError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
