"""The study: ``python bench/study`` samples every row that is not measured yet, then writes tables, plots and the page.

Two processes of one thread each do it, the rules that matter most first. It stops when its time is up; interrupted or
stopped, it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

from configurations import BUDGETS, CONFIGURATIONS
from lanes import Lanes
from measure import Job, Study, measure, prepare
from report import write_report

MINUTES = 55.0
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the study and return the exit code."""
    parser = argparse.ArgumentParser(description="Every rule with every substitute at equal evaluations.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "bench" / "study" / "results", help="folder of the CSV files"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page study.md and its plots")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--only", nargs="+", default=[], help="only configurations whose name contains one of these")
    parser.add_argument("--first-only", action="store_true", help="only the rules that matter most")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no row after this time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="sample nothing, write the page from what there is")
    given = parser.parse_args()
    start = time.monotonic()
    study = Study(given.out, tuple(range(given.samples)), time.time() + 60 * given.minutes)
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in CONFIGURATIONS if not given.only or any(part in c.name for part in given.only)]
    jobs = [(c, budget) for budget in given.budgets for c in chosen]
    if not given.report:
        with Lanes(study, given.workers) as lanes:
            work = [
                lanes.run(prepare, [(c, c) for c in chosen]),
                *(
                    lanes.run(measure, [(c, Job(c, budget, first)) for c, budget in jobs])
                    for first in ((True,) if given.first_only else (True, False))
                ),
            ]
            for done in itertools.chain.from_iterable(work):
                print(f"{(time.monotonic() - start) / 60:5.1f} min  {done}", flush=True)
    for path in write_report(study.folder, given.docs):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
