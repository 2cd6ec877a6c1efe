"""The report of a comparison: one HTML file that needs nothing else, with figures inline and no scripts."""

from __future__ import annotations

import base64
import io
from importlib import resources
from pathlib import Path
from typing import Any

from attrs import frozen

import cachepolicies.comparison.figures as figures
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison.results import Comparison, cells

DPI = 130
STRIPS = 3
"""Videos shown; of pictures, all that were kept."""


@frozen
class TableRow:
    """One row of the table in the report.

    Attributes:
        label: of the result.
        kind: its kind, as a CSS class.
        cells: the numbers as text.
        first: whether a group starts here.
        best: whether its PSNR is the highest of its group.
        policy: its settings, as a tooltip.
    """

    label: str
    kind: str
    cells: tuple[str, ...]
    first: bool
    best: bool
    policy: str


@frozen
class Picture:
    """A figure of the report.

    Attributes:
        title: above it; may be empty.
        data: base64 of the PNG.
        alternative: what it shows, in words.
        width: pixels on the page.
    """

    title: str
    data: str
    alternative: str
    width: int


def write_report(comparison: Comparison, path: str | Path) -> Path:
    """Write the report and return its path; its folder is created.

    Raises:
        NeedsError: matplotlib or jinja2 is not installed.
    """
    target = Path(path)
    html = rendered_report(comparison)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    return target


def write_all(comparison: Comparison, folder: str | Path) -> tuple[Path, Path, Path]:
    """Write ``report.html``, ``table.csv`` and ``table.json`` into a folder, the tables first, and return the paths.

    Raises:
        NeedsError: pandas, matplotlib or jinja2 is not installed.
    """
    into = Path(folder)
    csv, document = into / "table.csv", into / "table.json"
    comparison.to_csv(csv)
    comparison.to_json(document)
    return write_report(comparison, into / "report.html"), csv, document


def rendered_report(comparison: Comparison) -> str:
    """Return the report as HTML text.

    Raises:
        NeedsError: matplotlib or jinja2 is not installed.
    """
    check_installed("matplotlib", "jinja2")
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("cachepolicies.comparison").joinpath("report.html.j2").read_text(encoding="utf-8")
    policies = [result for result in comparison.results if result.kind == "policy"]
    return environment.from_string(source).render(
        comparison=comparison,
        headline=_headline(comparison),
        rows=_table_rows(comparison),
        scores=comparison.score_names,
        quality=_picture(figures.quality(comparison), "", "PSNR against evaluations, for every way of sampling"),
        samples=_samples(comparison),
        video=figures.is_video(comparison),
        played=_played(comparison),
        verdict=comparison.verdict(),
        timelines=[
            _picture(
                figures.timeline(comparison, result),
                f"{result.label}: {result.mean_nfe:.1f} of {result.calls} ({min(result.nfe):g} to {max(result.nfe):g})",
                f"which calls {result.label} evaluated, for every sample",
            )
            for result in policies
            if result.traces
        ],
        changes=[
            _picture(
                figures.changes(result), result.label, f"predicted and true change at the reuses of {result.label}"
            )
            for result in policies
            if result.changes
        ],
        policies=policies,
        notes=[(result.label, note) for result in comparison.results for note in result.notes],
    )


def _played(comparison: Comparison) -> list[Picture]:
    """Return the shown videos as the first policy made them, playing."""
    policies = [result for result in comparison.results if result.kind == "policy"]
    if not policies or not figures.is_video(comparison):
        return []
    found = []
    for number, seed in enumerate(comparison.shown[:STRIPS]):
        data = base64.b64encode(figures.played(comparison, policies[0], number)).decode("ascii")
        words = f"seed {seed}: uncached, {policies[0].label}, and their difference, playing"
        found.append(Picture(f"seed {seed}", data, words, figures.PLAYED))
    return found


def _headline(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return one line a policy: its label, what it saved, and what it kept against the better baseline."""
    lines = []
    rows = {row["label"]: row for row in comparison.rows()}
    for result in comparison.results:
        if result.kind != "policy":
            continue
        row = rows[result.label]
        faster = "" if comparison.busy else f", {row['speed_up']:.2f} times as fast"
        saved = f"{row['nfe']:.1f} of {result.calls} evaluations{faster}"
        kept = f"{row['psnr_mean']:.1f} dB"
        against = [
            f"{other['psnr_mean']:.1f} dB {other['label'] if other['kind'] == 'foreign' else other['kind']}"
            for other in rows.values()
            if other["matches"] == result.label
        ]
        lines.append((result.label, saved, kept + (f" (against {', '.join(against)})" if against else "")))
    return lines


def _table_rows(comparison: Comparison) -> list[TableRow]:
    rows = comparison.rows()
    best: dict[str, float] = {}
    for row in rows:
        group = row["matches"] or row["label"]
        if row["psnr_mean"] == row["psnr_mean"]:
            best[group] = max(best.get(group, row["psnr_mean"]), row["psnr_mean"])
    groups = [row["matches"] or row["label"] for row in rows]
    return [
        TableRow(
            label=result.label,
            kind=result.kind.replace(" ", "-"),
            cells=cells(row, comparison.score_names, timed=not comparison.busy),
            first=group == result.label,
            best=groups.count(group) > 1 and row["psnr_mean"] == best.get(group),
            policy=result.policy,
        )
        for result, row, group in zip(comparison.results, rows, groups, strict=True)
    ]


def _samples(comparison: Comparison) -> list[Picture]:
    if not comparison.shown:
        return []
    if not figures.is_video(comparison):
        return [_picture(figures.sample_sheet(comparison), "", "the same samples from every way of sampling")]
    return [
        _picture(figures.strip(comparison, number), "", f"seed {seed} from every way of sampling")
        for number, seed in enumerate(comparison.shown[:STRIPS])
    ]


def _picture(figure: Any, title: str, alternative: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(title, data, alternative, round(float(figure.get_size_inches()[0]) * 100))
