"""The section of ``docs/plans.md`` on how little calibration is enough, from ``bench/results/calibration.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

RESULTS = Path(__file__).parent / "results" / "calibration.csv"

Row = Mapping[str, str]


def enough(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the section."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    parts = list(dict.fromkeys((row["samples"], row["weights"]) for row in rows))
    budgets = sorted({row["evaluations"] for row in rows}, key=int)
    columns = [(model, budget) for model in models for budget in budgets]
    found = {(row["model"], row["evaluations"], row["samples"], row["weights"]): row for row in rows}
    whole = {column: float(found[column + parts[0]]["mean"]) for column in columns}
    lines = [
        "## How little calibration is enough",
        "",
        "Plans from parts of a calibration: of its samples, and of the steps whose weights were measured, the others "
        f"interpolated. Mean PSNR on 24 other samples at {' and '.join(budgets)} evaluations, less that with "
        "everything, in dB, on the models that defaults were chosen on; the mean over three draws of the samples "
        "where not all are taken. *Evaluations* are those of the whole calibration. Half a decibel is noise.",
        "",
        "| samples | weights of | evaluations | " + " | ".join(f"{m}, {b}" for m, b in columns) + " | mean |",
        "| --- | --- | --- |" + " --- |" * (len(columns) + 1),
    ]
    for part in parts:
        cells = [found[column + part] for column in columns]
        losses = [float(cell["mean"]) - whole[column] for cell, column in zip(cells, columns, strict=True)]
        lines.append(
            f"| {' | '.join(part)} | {cells[0]['calibration_evaluations']} | "
            + " | ".join(f"{loss:+.1f}" for loss in losses)
            + f" | {mean(losses):+.1f} |"
        )
    return [*lines, ""]
