"""Measure the short version again, and compare it with the committed one: ``make bench-peers-short``."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "bench" / "results" / "peers-short.csv"
AGAIN = ROOT / "build" / "peers-short.csv"
CLOSE = 0.1
"""Decibels that machines may differ by."""


def read(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Return the rows of a file by case, method and setting."""
    with path.open(newline="") as file:
        return {tuple(row[k] for k in ("model", "solver", "method", "setting")): row for row in csv.DictReader(file)}


def main() -> int:
    """Return 0 if every row is there with equal work and fidelity."""
    AGAIN.unlink(missing_ok=True)
    subprocess.run([sys.executable, Path(__file__).with_name("run.py"), "--short", "--out", AGAIN], check=True)
    before, now = read(COMMITTED), read(AGAIN)
    apart = [key for key in before if key not in now or not _close(before[key], now[key])]
    print(f"{len(before)} rows, {len(apart)} apart by more than {CLOSE} dB")
    for key in apart:
        print(*key, before[key]["mean"], "before,", now.get(key, {}).get("mean", "not measured"), "now")
    return 1 if apart or len(now) != len(before) else 0


def _close(one: dict[str, str], other: dict[str, str]) -> bool:
    if one["failed"] or other["failed"]:
        return bool(one["failed"]) == bool(other["failed"])
    return one["work"] == other["work"] and abs(float(one["mean"]) - float(other["mean"])) <= CLOSE


if __name__ == "__main__":
    sys.exit(main())
