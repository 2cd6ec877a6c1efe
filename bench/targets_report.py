"""The section of ``docs/plans.md`` on plans that were asked for a quality, from ``bench/results/targets.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "targets.csv"
MOST_MISSED, SHORT = 0.1, 1.5

Row = Mapping[str, str]


def section(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the section."""
    twins = [row for row in rows if row["model"].endswith("-twin")]
    models = [row for row in rows if not row["model"].endswith("-twin")]
    failed = [row for row in rows if not _met(row)]
    listed = "; ".join(f"{_target(row)} of {row['model']}: {_result(row)}" for row in failed)
    held = f"All {len(rows)} hold" if not failed else f"{len(failed)} of {len(rows)} do not hold ({listed})"
    first = rows[0]
    return [
        "## Asked for a quality",
        "",
        f"`plan(profile, target=...)` with targets of {', '.join(sorted({row['target'] for row in rows}, key=float))} "
        f"dB, solved with the trials of 16 samples that a profile holds, on {first['samples']} samples that had no "
        f"part in it. A target holds if the mean is at most {SHORT} dB below it, and at most {MOST_MISSED:.0%} of the "
        f"samples are more than 3 dB below it. {held}. How sure a plan has to be was chosen on the models, not on the "
        "twins. *Expected* is the mean and the value that nine new samples in ten are to be above.",
        "",
        *_table(twins),
        "",
        *_table(models),
        "",
    ]


def _met(row: Row) -> bool:
    return float(row["mean"]) >= float(row["target"]) - SHORT and float(row["missed"]) <= MOST_MISSED


def _target(row: Row) -> str:
    return f"{float(row['target']):g} dB"


def _result(row: Row) -> str:
    return f"mean {float(row['mean']):.1f}, {float(row['missed']):.0%} more than 3 dB below"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| model | target | evaluations | expected: mean, nine in ten above | found: mean, 10 %, worst | missed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = ", ".join(f"{float(row[what]):.1f}" for what in ("mean", "lowest_tenth", "worst"))
        expected = "nothing reused" if row["expected"] == "nan" else f"{_number(row, 'expected')}, {_low(row)}"
        lines.append(
            f"| {row['model']} | {_target(row)} | {row['evaluations']} | {expected} | {found} | "
            f"{float(row['missed']):.0%} |"
        )
    return lines


def _number(row: Row, what: str) -> str:
    return f"{float(row[what]):.1f}"


def _low(row: Row) -> str:
    return _number(row, "expected_low")
