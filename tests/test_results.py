"""The results pages are what their scripts make of the committed results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    sys.path.insert(0, str(ROOT / "bench"))  # the scripts import one another
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_plans_is_generated():
    report = script("plans_report")
    rows = report.read()
    written = report.page(rows, report.read(report.TARGETS), report.read(report.CALIBRATIONS))
    assert report.PAGE.read_text() == written
    first = next(line for line in written.splitlines()[1:] if line)
    assert "in the mean over" in first


def test_a_cell_that_falls_short_is_in_the_first_sentence():
    report = script("plans_report")
    rows = report.read()
    name = next(row["model"] for row in rows if row["model"].endswith("-twin"))
    worse = [
        {**row, "mean": "10.0"} if row["model"] == name and row["plan"] == "now" and row["evaluations"] == "31" else row
        for row in rows
    ]
    targets, calibrations = report.read(report.TARGETS), report.read(report.CALIBRATIONS)
    assert f"{name} at 31" in report.page(worse, targets, calibrations).splitlines()[2]
    missed = [{**row, "missed": "0.25"} if row is targets[0] else row for row in targets]
    said = f"1 of {len(targets)} do not hold ({float(targets[0]['target']):g} dB of {targets[0]['model']}"
    assert said in report.page(rows, missed, calibrations)


def test_the_page_of_peers_is_generated():
    report = script("peers/page")
    rows = report.read()
    assert report.PAGE.read_text() == report.page(rows)


def test_a_peer_that_wins_is_in_the_first_sentence():
    report = script("peers/page")
    rows = report.read()
    peer = next(row for row in rows if row["method"].startswith(report.PEERS) and not row["failed"])
    better = [{**row, "mean": "99.0", "work": "0.2"} if row is peer else row for row in rows]
    assert f"{peer['model']} with {peer['solver']} at 62%" in report.page(better).splitlines()[2]


def test_a_peer_that_fails_is_named_with_its_reason():
    report = script("peers/page")
    rows = report.read()
    peer = next(row for row in rows if row["method"].startswith(report.PEERS) and not row["failed"])
    broken = [{**row, "failed": "TypeError: no such model"} if row["method"] == peer["method"] else row for row in rows]
    assert f"- {peer['method']} on {peer['model']}: `TypeError: no such model`." in report.page(broken)
