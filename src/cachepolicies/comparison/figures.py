"""The figures of a report, drawn with matplotlib; each function but `lines` returns a figure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

import numpy as np
from attrs import frozen

from cachepolicies.comparison._svg import GRID, INK, MUTED, PAPER
from cachepolicies.comparison.results import CandidateKind, Change, Comparison, Result

COLOURS = {"uncached": INK, "policy": "#2f7fc8", "fewer steps": "#d1701a", "uniform": "#4c8f5a", "foreign": "#b0477c"}
METHOD_COLOURS = ("#2f7fc8", "#a05fc0", "#0f9aa0", "#d1498b", "#8f7d1a", "#7272f0", "#b4553d", "#7d8894")
"""Of the policies' lines in turn; they suit a light and a dark page."""
METHOD_MARKERS = ("o", "D", "v", "P", "X", "<", ">", "p", "*")
"""Of the same; one more than the colours, so that a pair does not come again soon."""
REUSED = (0.5, 0.57, 0.65, 0.22)
WIDE, NARROW = 10.0, 4.0
"""Inches of a figure on a screen and on a telephone."""
MOST_LABELLED = 40
"""Samples that a timeline can label one by one."""
LEAST_SPAN = 0.3
"""Part of the uncached calls that the axis of the evaluations spans at least."""


@frozen
class Line:
    """The rows of one method, in the chart of quality against evaluations.

    Attributes:
        label: for the legend.
        kind: of its rows.
        points: evaluations, PSNR of the mean and of the worst sample, by evaluations.
    """

    label: str
    kind: CandidateKind
    points: tuple[tuple[float, float, float], ...]

    @property
    def joined(self) -> tuple[tuple[float, float], ...]:
        """Evaluations and mean of the points that the line goes through: of several at as many, the best."""
        best: dict[int, tuple[float, float]] = {}
        for work, mean, _ in self.points:
            at = round(work)
            if at not in best or mean > best[at][1]:
                best[at] = (work, mean)
        return tuple(best.values())


def lines(comparison: Comparison) -> list[Line]:
    """Return one line for each policy, substitute and site, and last those of other caches, uniform reuse, fewer steps.

    A row whose PSNR is not finite has no place in them.
    """
    points: dict[str, set[tuple[float, float, float]]] = {}
    kinds: dict[str, CandidateKind] = {}
    for result, row in zip(comparison.results, comparison.rows(), strict=True):
        mean, worst = row["psnr_mean"], row["psnr_worst"]
        if result.kind == "uncached" or not (math.isfinite(mean) and math.isfinite(worst)):
            continue
        label = result.method or result.kind
        points.setdefault(label, set()).add((row["nfe"], mean, worst))
        if kinds.get(label, "policy") == "policy":  # uniform reuse that was asked for is on the line of the baseline
            kinds[label] = result.kind
    found = [Line(label, kinds[label], tuple(sorted(some))) for label, some in points.items()]
    return sorted(found, key=lambda line: ("policy", "foreign", "uniform", "fewer steps").index(line.kind))


def quality(comparison: Comparison, width: float = WIDE) -> Any:
    """Draw PSNR against evaluations: a line for each method, and below each point a thin one to the worst sample."""
    drawn = lines(comparison)
    narrow = width < WIDE
    height = 4.6 + 0.19 * len(drawn) if narrow else max(4.6, 1.2 + 0.27 * len(drawn))
    figure = _report_figure(width, height)
    axes = figure.subplots()
    policies = evens = 0
    for line in drawn:
        work, mean, worst = zip(*line.points, strict=True)
        style: dict[str, Any] = {"color": COLOURS[line.kind], "marker": "s", "ls": "--"}
        if line.kind == "policy":
            colour, marker = (some[policies % len(some)] for some in (METHOD_COLOURS, METHOD_MARKERS))
            style = {"color": colour, "marker": marker, "ls": "-"}
            policies += 1
        elif line.kind == "uniform":
            style |= {"marker": "^", "ls": ("--", ":", "-.")[evens % 3]}
            evens += 1
        elif line.kind == "foreign":
            style |= {"marker": "d", "ls": "-"}
        axes.vlines(work, worst, mean, color=style["color"], lw=1, alpha=0.4)
        joined_work, joined_mean = zip(*line.joined, strict=True)
        axes.plot(joined_work, joined_mean, lw=1.8, ms=6, label=line.label, **style)
        axes.scatter(work, mean, s=36, lw=0, color=style["color"], marker=style["marker"])
    if drawn:
        place: dict[str, Any] = {"loc": "outside lower center"} if narrow else {"loc": "outside right center"}
        legend = figure.legend(frameon=False, fontsize=9, labelcolor=INK, **place)
        legend.set_title("method", {"size": 9})
        legend.set_alignment("left")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a spec may have a dollar sign
        legend.get_title().set_color(MUTED)
        low, high = (extreme(point[0] for line in drawn for point in line.points) for extreme in (min, max))
        span = max((high - low) * 1.1, LEAST_SPAN * comparison.uncached.calls)
        axes.set_xlim((low + high - span) / 2, (low + high + span) / 2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("evaluations per sample")
    axes.set_ylabel("PSNR against uncached, dB")
    _tidy(axes, grid="both")
    return figure


def timeline(comparison: Comparison, result: Result, width: float = WIDE) -> Any:
    """Draw which calls were evaluated, one row a sample, sorted by the number of evaluations."""
    from matplotlib.colors import to_rgba

    marks = result.timeline()
    grid = np.array([[{"#": 1.0, "+": 0.5}.get(mark, 0.0) for mark in line] for line in marks])
    order = sorted(range(len(marks)), key=lambda row: (result.nfe[row], comparison.seeds[row]))
    samples, calls = grid.shape
    figure = _report_figure(width, min(max(1.8, 0.16 * samples + 1.2), 7.0))
    top, axes = figure.subplots(2, 1, height_ratios=(1, max(2.0, samples * 0.22)), sharex=True)
    colour = _colour(result)
    top.bar(np.arange(calls), grid.mean(axis=0), width=1.0, color=colour, lw=0)
    top.set_ylim(0, 1)
    top.set_yticks([0, 1], ["0", "all"])
    _tidy(top)
    reused, evaluated = np.array(REUSED), np.array(to_rgba(colour))
    shown = reused + grid[order][:, :, None] * (evaluated - reused)
    axes.imshow(shown, interpolation="none", aspect="auto", extent=(-0.5, calls - 0.5, samples - 0.5, -0.5))
    for at in range(1, calls):
        axes.axvline(at - 0.5, color=PAPER, lw=0.4)
    for at in range(1, samples):
        axes.axhline(at - 0.5, color=PAPER, lw=0.6)
    axes.set_xlim(-0.5, calls - 0.5)
    axes.set_xlabel("call of the denoiser, from noise (left) to sample (right)")
    if samples <= MOST_LABELLED:
        unstable = comparison.unstable(result) or (False,) * samples
        names = [f"{comparison.seeds[row]}{'*' if unstable[row] else ''}" for row in order]
        axes.set_yticks(range(samples), names)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(samples), [f"{result.nfe[row]:.3g}" for row in order], fontsize=7)
        right.set_ylabel("evaluations", fontsize=8, color=MUTED)
        right.tick_params(length=0, colors=MUTED)
        right.spines["right"].set_visible(False)
    axes.set_ylabel("seed")
    _tidy(axes)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelsize=7)
    return figure


def changes(result: Result, width: float = WIDE) -> Any:
    """Draw predicted and true change of the reused outputs: over the run, and against each other."""
    narrow = width < WIDE
    figure = _report_figure(width, 6.4 if narrow else 3.4)
    over, against = figure.subplots(2, 1) if narrow else figure.subplots(1, 2, width_ratios=(1.6, 1))
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
    over.legend(
        frameon=False,
        fontsize=8,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=1 if narrow else 2,
        borderaxespad=0.2,
        labelcolor=INK,
    )
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


def _logarithmic(axis: Any) -> None:
    """Label 1, 2 and 5 of every decade, as plain numbers: a panel seldom spans more than two decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _report_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Any, grid: str | None = None) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=3)
    axes.tick_params(axis="both", which="minor", length=0)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    if grid:
        axes.grid(axis=grid, color=GRID, lw=0.8)
        axes.set_axisbelow(True)
