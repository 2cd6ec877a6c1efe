"""The report of a comparison: one HTML file that needs nothing else, with figures and videos inline and no scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from attrs import frozen

import cachepolicies.comparison.figures as figures
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison._films import films, is_video, rows_of_pictures
from cachepolicies.comparison._svg import as_svg
from cachepolicies.comparison.results import Comparison, Result, cells

SECONDS_A_FRAME = 0.16


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
class Chart:
    """A figure of the report, drawn for a screen and for a telephone.

    Attributes:
        title: above it; may be empty.
        wide: the SVG.
        narrow: the same for a page of less than 720 pixels.
        alternative: what it shows, in words.
    """

    title: str
    wide: str
    narrow: str
    alternative: str


@frozen
class Headline:
    """What one policy saved and kept, for the top of the page."""

    label: str
    saved: str
    kept: str


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
        verdict=comparison.verdict(),
        headlines=[_headline(comparison, result) for result in _matched(comparison, policies)],
        rows=_table_rows(comparison),
        scores=comparison.score_names,
        quality=_chart(
            "quality",
            lambda width: figures.quality(comparison, width),
            "",
            "PSNR against evaluations, a line for every method",
        ),
        films=films(comparison) if comparison.shown and is_video(comparison) else [],
        pictures=rows_of_pictures(comparison) if comparison.shown and not is_video(comparison) else (),
        seconds_a_frame=SECONDS_A_FRAME,
        timelines=[
            _chart(
                f"timeline{number}",
                partial(figures.timeline, comparison, result),
                f"{result.label}: {result.mean_nfe:.1f} of {result.calls} ({min(result.nfe):g} to {max(result.nfe):g})",
                f"which calls {result.label} evaluated, for every sample",
            )
            for number, result in enumerate(policies)
            if result.traces
        ],
        changes=[
            _chart(
                f"changes{number}",
                partial(figures.changes, result),
                result.label,
                f"predicted and true change at the reuses of {result.label}",
            )
            for number, result in enumerate(policies)
            if result.changes
        ],
        notes=[(result.label, note) for result in comparison.results for note in result.notes],
    )


def _matched(comparison: Comparison, policies: Sequence[Result]) -> list[Result]:
    """Return the policies that baselines were matched to; all of them if there is none."""
    matched = {result.matches for result in comparison.results}
    return [result for result in policies if result.label in matched] or list(policies)


def _headline(comparison: Comparison, result: Result) -> Headline:
    """Return what a policy saved, and what it kept against the baselines that were matched to it."""
    rows = {row["label"]: row for row in comparison.rows()}
    ratio = comparison.speed_up(result)
    speed = f"{ratio:.2f} times as fast" if ratio >= 1 else f"takes {1 / ratio:.2f} times as long"
    if comparison.busy:
        speed = "time not reliable"
    against = [
        f"{other['psnr_mean']:.1f} dB {other['label'] if other['kind'] == 'foreign' else other['kind']}"
        for other in rows.values()
        if other["matches"] == result.label
    ]
    kept = f"{rows[result.label]['psnr_mean']:.1f} dB"
    return Headline(
        label=result.label,
        saved=f"{result.mean_nfe:.1f} of {result.calls} evaluations, {speed}",
        kept=kept + (f" (against {', '.join(against)})" if against else ""),
    )


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


def _chart(name: str, draw: Callable[[float], Any], title: str, alternative: str) -> Chart:
    wide, narrow = (as_svg(draw(width), f"{name}-{width:g}") for width in (figures.WIDE, figures.NARROW))
    return Chart(title, wide, narrow, alternative)
