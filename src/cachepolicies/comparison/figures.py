"""The figures of a report, drawn with matplotlib; each function returns a figure."""

from __future__ import annotations

import io
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.comparison.results import Change, Comparison, Result

INK, MUTED, GRID = "#1c2733", "#5b6875", "#e3e8ee"
COLOURS = {"uncached": INK, "policy": "#1f6fb4", "fewer steps": "#d1701a", "uniform": "#4c8f5a", "foreign": "#a03c6e"}
METHODS = ("#1f6fb4", "#7b4fb5", "#0f8a8a", "#b5462f", "#5f7f1f", "#93622b", "#c2408b", "#3f5fa8")
"""Colours of the lines of different methods."""
REUSED = "#dfe7ef"
WIDTH = 10.0
"""Inches of a figure as wide as the page."""
FRAMES_SHOWN = 8
TALLEST = 0.8
"""Inches of a picture in a row of few."""
MOST_LABELLED = 40
"""Samples that a timeline can label one by one."""
DIFFERENCE_GAIN = 5.0
PLAYED = 900
"""Pixels across of a video that plays, about."""
FRAME_TIME = 160
"""Milliseconds of a frame."""


def quality(comparison: Comparison) -> Any:
    """Draw PSNR against evaluations, a line for each method, its settings in the order of their work."""
    lines = lines_of(comparison)
    figure = _report_figure(WIDTH, 4.6 + 0.16 * max(0, len(lines) - 8))
    axes = figure.subplots()
    shades = iter(METHODS * (1 + len(lines) // len(METHODS)))
    for line in lines:
        colour = COLOURS[line.kind] if line.kind != "policy" else next(shades)
        marker = {"policy": "o", "fewer steps": "s", "uniform": "^", "foreign": "D"}[line.kind]
        nfe, mean, worst = zip(*line.points, strict=True)
        axes.plot(nfe, mean, marker=marker, color=colour, lw=1.8, ms=6, label=line.name)
        axes.plot(nfe, worst, marker=marker, color=colour, lw=0.9, ls=":", ms=3, alpha=0.7)
    if lines:
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("evaluations per sample (dotted: the worst sample)")
    axes.set_ylabel("PSNR against uncached, dB")
    _tidy(axes, grid="both")
    return figure


@frozen
class Line:
    """One method in the chart: its settings as points, in the order of their work.

    Attributes:
        name: of the method.
        kind: of its results.
        points: evaluations, mean PSNR and worst PSNR of each setting.
    """

    name: str
    kind: str
    points: tuple[tuple[float, float, float], ...]


def lines_of(comparison: Comparison) -> list[Line]:
    """Return a line for each method: what shares policy, substitute and site, whatever the threshold or the budget."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for result, row in zip(comparison.results, comparison.rows(), strict=True):
        if result.kind == "uncached" or not (math.isfinite(row["psnr_mean"]) and math.isfinite(row["psnr_worst"])):
            continue
        name = result.method or result.kind
        found.setdefault((result.kind, name), []).append((row["nfe"], row["psnr_mean"], row["psnr_worst"]))
    return [Line(name, kind, tuple(sorted(points))) for (kind, name), points in found.items()]


def strip(comparison: Comparison, number: int) -> Any:
    """Draw one video as every result has it: its frames in a row, and beside them the distance to the uncached ones.

    Args:
        comparison: with pictures kept.
        number: which of the shown samples, from 0.
    """
    frames = _chosen_frames(comparison.uncached.pictures.shape[1])

    def distance(result: Result) -> str:
        return _decibels(result.psnr[number])

    return _strips(
        comparison,
        lambda result: result.pictures[number].numpy()[frames],
        distance,
        f"frames, seed {comparison.shown[number]}",
    )


def played(comparison: Comparison, result: Result, number: int) -> bytes:
    """Return a video that plays, as a GIF: the uncached one, that of a result, and their difference, side by side.

    Args:
        comparison: with pictures kept.
        result: with as many.
        number: which of the shown samples, from 0.
    """
    from PIL import Image

    reference, cached = comparison.uncached.pictures[number].numpy(), result.pictures[number].numpy()
    difference = np.clip(np.abs(cached - reference) * DIFFERENCE_GAIN, 0, 1)
    gap = np.full((*reference.shape[:2], max(1, reference.shape[2] // 12)), 0.5)
    panels = np.concatenate([reference, gap, cached, gap, difference], axis=2)
    scale = max(1, round(PLAYED / panels.shape[2]))
    frames = [
        Image.fromarray((np.clip(frame, 0, 1) * 255).astype(np.uint8)).resize(
            (frame.shape[1] * scale, frame.shape[0] * scale), Image.Resampling.NEAREST
        )
        for frame in panels
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=FRAME_TIME, loop=0)
    return buffer.getvalue()


def sample_sheet(comparison: Comparison) -> Any:
    """Draw the shown samples, one picture each, as every result has them, and their distance to the uncached ones."""
    count = min(len(comparison.shown), FRAMES_SHOWN)

    def distance(result: Result) -> str:
        return _decibels(statistics.fmean(result.psnr[:count]))

    seeds = ", ".join(map(str, comparison.shown[:count]))
    return _strips(comparison, lambda result: result.pictures[:count, 0].numpy(), distance, f"seeds {seeds}")


def _strips(
    comparison: Comparison, pick: Callable[[Result], NDArray[Any]], distance: Callable[[Result], str], heading: str
) -> Any:
    """Draw a row of pictures ``(n, H, W)`` for each result, the distance to those of the first, and a text."""
    results = comparison.results
    reference = pick(results[0])
    count, height, width = reference.shape
    left, gap, right = 2.0, 0.3, 0.7
    span = min((WIDTH - left - gap - right) / 2, TALLEST * count * width / height)
    row, space, head = span / count * height / width, 0.06, 0.34
    total = head + len(results) * (row + space)
    across = left + 2 * span + gap + right
    figure = _report_figure(across, total, layout=None)

    def panel(at: float, bottom: float, pictures: NDArray[Any], cmap: str) -> None:
        axes = figure.add_axes((at / across, bottom / total, span / across, row / total))
        axes.imshow(_row_of(pictures), cmap=cmap, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()

    def text(at: float, height: float, words: str, **style: Any) -> None:
        figure.text(at / across, height / total, words, fontsize=9, va="center", **style)

    for index, result in enumerate(results):
        bottom = total - head - (index + 1) * row - index * space
        pictures = pick(result)
        weight = "bold" if result.kind in ("uncached", "policy") else "normal"
        text(left - 0.12, bottom + row / 2, _shortened(result.label), ha="right", color=_colour(result), weight=weight)
        panel(left, bottom, pictures, "gray")
        if index:
            difference = np.clip(np.abs(pictures - reference) * DIFFERENCE_GAIN, 0, 1)
            panel(left + span + gap, bottom, difference, "Reds")
            text(left + 2 * span + gap + 0.08, bottom + row / 2, distance(result), ha="left", color=MUTED)
    text(left, total - head / 2, heading, color=MUTED)
    text(left + span + gap, total - head / 2, f"|difference to uncached| x {DIFFERENCE_GAIN:g}", color=MUTED)
    return figure


def timeline(comparison: Comparison, result: Result) -> Any:
    """Draw which calls were evaluated, one row a sample, sorted by the number of evaluations."""
    from matplotlib.colors import ListedColormap

    lines = result.timeline()
    grid = np.array([[{"#": 1.0, "+": 0.5}.get(mark, 0.0) for mark in line] for line in lines])
    order = sorted(range(len(lines)), key=lambda row: (result.nfe[row], comparison.seeds[row]))
    samples, calls = grid.shape
    figure = _report_figure(WIDTH, min(max(1.6, 0.15 * samples + 1.0), 7.0))
    top, axes = figure.subplots(2, 1, height_ratios=(1, max(2.0, samples * 0.22)), sharex=True)
    colour = _colour(result)
    top.bar(np.arange(calls), grid.mean(axis=0), width=1.0, color=colour, lw=0)
    top.set_ylim(0, 1)
    top.set_yticks([0, 1], ["0", "all"])
    _tidy(top)
    axes.pcolormesh(
        np.arange(calls + 1) - 0.5,
        np.arange(samples + 1) - 0.5,
        grid[order],
        cmap=ListedColormap([REUSED, colour]),
        vmin=0,
        vmax=1,
        edgecolors="white",
        linewidth=0.4,
    )
    axes.invert_yaxis()
    axes.set_xlim(-0.5, calls - 0.5)
    axes.set_xlabel("call of the denoiser, from noise (left) to sample (right)")
    if samples <= MOST_LABELLED:
        unstable = comparison.unstable(result) or (False,) * samples
        names = [f"{comparison.seeds[row]}{'*' if unstable[row] else ''}" for row in order]
        axes.set_yticks(range(samples), names, fontsize=6)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(samples), [f"{result.nfe[row]:g}" for row in order], fontsize=6)
        right.set_ylabel("evaluations", fontsize=8, color=MUTED)
        right.tick_params(length=0, colors=MUTED)
        right.spines["right"].set_visible(False)
    axes.set_ylabel("seed", fontsize=8)
    _tidy(axes)
    axes.tick_params(length=0)
    return figure


def changes(result: Result) -> Any:
    """Draw predicted and true change of the reused outputs: over the run, and against each other."""
    figure = _report_figure(WIDTH, 3.4)
    over, against = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colour = _colour(result)
    by_call: dict[int, list[Change]] = defaultdict(list)
    for change in result.changes:
        by_call[change.call].append(change)
    calls = sorted(by_call)
    predictions = any(math.isfinite(change.predicted) for change in result.changes)
    for name, shade in (("true", INK), ("predicted", colour)) if predictions else (("true", INK),):
        values = [[getattr(change, name) for change in by_call[call]] for call in calls]
        middle = [statistics.median(some) for some in values]
        over.vlines(calls, [min(some) for some in values], [max(some) for some in values], color=shade, alpha=0.3, lw=3)
        over.plot(calls, middle, "o", color=shade, ms=4, label=f"{name} change, median and range")
    over.set_yscale("log")
    _logarithmic(over.yaxis)
    over.set_xlabel("call of the denoiser")
    over.set_ylabel("RMS change of the output")
    over.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    _tidy(over, grid="y")
    if predictions:
        x = np.array([change.predicted for change in result.changes])
        y = np.array([change.true for change in result.changes])
        late = np.array([change.call for change in result.changes])
        dots = against.scatter(x, y, c=late, cmap="viridis", s=12, lw=0, alpha=0.8)
        positive = np.concatenate([x[x > 0], y[y > 0]])
        if positive.size:
            ends = (float(positive.min()) * 0.8, float(positive.max()) * 1.25)
            against.plot(ends, ends, color=MUTED, lw=1, ls="--", zorder=0)
            against.set_xlim(ends)
            against.set_ylim(ends)
        against.set_xscale("log")
        against.set_yscale("log")
        _logarithmic(against.xaxis)
        _logarithmic(against.yaxis)
        against.set_xlabel("predicted (score)")
        against.set_ylabel("true")
        bar = figure.colorbar(dots, ax=against)
        bar.set_label("call", fontsize=8, color=MUTED)
        bar.ax.tick_params(labelsize=8, colors=MUTED)
        bar.outline.set_visible(False)
        _tidy(against, grid="both")
    else:
        against.set_axis_off()
        against.text(0.5, 0.5, "this policy predicts no change", ha="center", va="center", color=MUTED)
    return figure


def _colour(result: Result) -> str:
    return COLOURS[result.kind]


def _decibels(psnr: float) -> str:
    return "equal" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _logarithmic(axis: Any) -> None:
    """Label 1, 2 and 5 of every decade, as plain numbers: a panel seldom spans more than two decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _chosen_frames(count: int) -> list[int]:
    """Return at most eight evenly spaced frames."""
    if count <= FRAMES_SHOWN:
        return list(range(count))
    return [round(index * (count - 1) / (FRAMES_SHOWN - 1)) for index in range(FRAMES_SHOWN)]


def _row_of(frames: NDArray[Any]) -> NDArray[Any]:
    """Put ``(n, H, W)`` side by side, with a line of nothing between them."""
    gap = np.full((frames.shape[1], 1), np.nan)
    parts: list[NDArray[Any]] = []
    for frame in frames:
        parts.extend([frame, gap])
    return np.concatenate(parts[:-1], axis=1)


def _shortened(label: str, limit: int = 30) -> str:
    return label if len(label) <= limit else f"{label[: limit - 1]}…"


def _report_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _tidy(axes: Any, grid: str | None = None) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    axes.tick_params(axis="both", which="minor", length=0)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    if grid:
        axes.grid(axis=grid, color=GRID, lw=0.8)
        axes.set_axisbelow(True)


def is_video(comparison: Comparison) -> bool:
    """Whether the samples have more than one frame."""
    return comparison.uncached.pictures.shape[1] > 1
