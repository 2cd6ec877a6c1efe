"""The results pages are what their scripts make of the committed results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_plans_is_generated():
    report = script("plans_report")
    rows = report.read()
    assert report.PAGE.read_text() == report.page(rows)
    first = next(line for line in report.page(rows).splitlines()[1:] if line)
    assert "in the mean over" in first


def test_a_cell_that_falls_short_is_in_the_first_sentence():
    report = script("plans_report")
    rows = report.read()
    name = next(row["model"] for row in rows if row["model"].endswith("-twin"))
    worse = [
        {**row, "mean": "10.0"} if row["model"] == name and row["plan"] == "now" and row["evaluations"] == "31" else row
        for row in rows
    ]
    assert f"{name} at 31" in report.page(worse).splitlines()[2]


def test_the_page_of_peers_is_generated():
    report = script("peers_report")
    rows = report.read()
    assert report.PAGE.read_text() == report.page(rows)


def test_a_peer_that_wins_is_in_the_first_sentence():
    report = script("peers_report")
    rows = report.read()
    peer = next(row for row in rows if row["method"].startswith("diffusers") and float(row["work"]) < 0.6)
    better = [{**row, "mean": "99.0"} if row is peer else row for row in rows]
    assert f"{peer['model']} at 62%" in report.page(better).splitlines()[2]
