"""What is measured on a GPU runs at tiny size on a CPU, and writes every section that can be had there."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_bench_for_gpus_runs_on_tiny_models(tmp_path):
    out = tmp_path / "gpu.csv"
    command = [sys.executable, "bench/gpu.py", "--tiny", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["model"], row["section"]) for row in rows}
    sections = ("added", "speed-up", "compiled, regional")
    assert found >= {(model, section) for model in ("Wan-1.3B-shaped", "FLUX-shaped") for section in sections}
    right = [row for row in rows if row["figure"] == "largest difference from what it should be"]
    assert right
    assert all(float(row["value"]) < 1e-3 for row in right)
