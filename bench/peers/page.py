"""Write ``docs/peers.md`` from ``bench/results/peers.csv``: ``python bench/peers/page.py``."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "peers.csv"
PAGE = ROOT / "docs" / "peers.md"
LEVELS = (0.20, 0.26, 0.34, 0.44, 0.62)
NEAR = 0.03
"""A setting counts at a level if its work is at most so far above it."""

UNCACHED = "uncached"
FULL, ONE_RUN, FEWER = "planned, full profile", "planned, one uncached run", "fewer steps"
FREE = ("no profile: uniform, corrected line", "no profile: seacache, corrected line")
OURS_FIRST = (FEWER, FULL, ONE_RUN, *FREE)
SEA = "diffusers SeaCache"
DEFAULT = (FREE[1], "seacache:threshold=0.25,max_reuse=2")
"""This library's rule without a profile, with its own defaults."""

SEA_DEFAULT = (SEA, "threshold=0.25,order=1,most=2")
"""The defaults of diffusers' SeaCacheConfig."""

PARTS = (
    "DBCache F1B0, linear",
    "DBCache F1B1",
    "DeepCache",
    "DeepCache, dense keys",
    "Delta-DiT",
    "DiCache",
    "FasterCache attention",
    "FirstBlockCache",
    "FoCa",
    "FoCa, slope of a step",
    "FORA",
    "FreqCa",
    "FreqCa, quadratic",
    "L2C, calibrated errors",
    "MeanCache",
    "PAB",
    "PAB, no window",
    "SpeCa",
)
"""Methods that reuse parts of the network, of the packages in ``plugins/``."""

PEERS = ("diffusers", "cache-dit", "hicache-pp")
SLACK = 0.5
"""Decibels that are noise."""

Row = Mapping[str, str]
Cell = tuple[str, str, float]


def read(path: Path = RESULTS) -> list[Row]:
    """Return the rows of the study."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def best(rows: Sequence[Row], cell: Cell, method: str) -> Row | None:
    """Return the setting of a method with the highest mean at a level of work or less, None where there is none."""
    model, solver, level = cell
    near = [
        row
        for row in rows
        if (row["model"], row["solver"], row["method"]) == (model, solver, method)
        and not row["failed"]
        and float(row["work"]) <= level + NEAR
    ]
    return max(near, key=lambda row: float(row["mean"]), default=None)


def page(rows: Sequence[Row]) -> str:
    """Return the page."""
    cases = list(dict.fromkeys((row["model"], row["solver"]) for row in rows))
    cells = [(*case, level) for case in cases for level in LEVELS]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    theirs = [method for method in methods if method.startswith(PEERS)]
    # against the best peer in the mean and, separately, against the best in the quantile
    ahead = _differences(rows, cells, [FULL], theirs, "mean")
    tails = _differences(rows, cells, [FULL], theirs, "lowest_tenth")
    steps = _differences(rows, cells, [FULL], [FEWER], "mean")
    one_run = _differences(rows, cells, [ONE_RUN], [SEA], "mean")
    free = _differences(rows, cells, FREE, [SEA], "mean")
    parts = _differences(rows, cells, [FULL], PARTS, "mean")
    first, samples = rows[0], rows[0]["samples"]
    versions = "; or ".join(dict.fromkeys(row["versions"] for row in rows))
    return "\n".join(
        [
            "# Beside other caches",
            "",
            f"At equal work, plans from a full profile are {mean(ahead.values()):.1f} dB above the best of "
            f"{len(theirs)} ways of diffusers, cache-dit and hicache-pp in the mean over {len(ahead)} cells of model, "
            f"solver and work; {_short('they are below it by more than half a decibel', ahead)}.",
            "",
            f"- In the 10 % quantile: {mean(tails.values()):+.1f} dB in the mean; {_short('below', tails)}.",
            f"- Against fewer steps of the same solver: {mean(steps.values()):+.1f} dB over {len(steps)} cells; "
            f"{_short('below', steps, 0.0)}.",
            f"- Planned from one uncached run, no weights, against SeaCache of diffusers: "
            f"{mean(one_run.values()):+.1f} dB over {len(one_run)} cells; {_short('below', one_run)}.",
            f"- Against the best of the methods that reuse parts of the network (AdaCache excepted), on this library's "
            f"engine, from `plugins/`: {mean(parts.values()):+.1f} dB over {len(parts)} cells, "
            f"{min(parts.values()):+.1f} at least; {_short('below', parts)}.",
            f"- Without a profile, the better of evenly spaced and SeaCache's rule, both with the corrected line, "
            f"against SeaCache of diffusers: {mean(free.values()):+.1f} dB; {_short('below', free)}.",
            f"- With nothing tuned: `{DEFAULT[1]}` with the corrected line against the defaults of diffusers' "
            f"SeaCacheConfig, which do as much: {_at_defaults(rows, cases)}.",
            "",
            f"Models that no default was chosen on, 50 steps, {samples} samples a cell, the uncached samples of the "
            "same seeds and solver as the reference. Work is the part of the uncached FLOPs that was executed. Every "
            "method is swept over settings of its own; a cell has the best of those that take at most three points of "
            "a hundred more work than the level: mean PSNR, 10 % quantile, worst, in dB, and how many of the samples "
            "are *unstable*: a random change of the first output, of RMS 1e-3, moves them as far. A `-` is a level "
            "below all settings of the method.",
            "",
            "## Which solver",
            "",
            *_nearest(rows, cases),
            *(line for case in cases for line in _section(rows, case)),
            "## What was not served",
            "",
            *_not_served(rows),
            "The caches of diffusers and cache-dit cut inside transformer blocks of diffusers' classes: the U-Net and "
            "the one-dimensional transformer have none. The image model got the mix-in that its class lacks, and "
            "TaylorSeer the names of the modules. hicache-pp forecasts the guided output, for any model. diffusers has "
            "no multistep solver for the noise levels of the U-Net that the library adapts.",
            "",
            "## What was tried where cells fall short",
            "",
            "All on the models, not on these twins. A correction by 0.8 everywhere lost to fewer steps at 20 % "
            "under the multistep solvers on the image model (28 dB against 36); by 0.5 it has 38, without one 41: "
            "hence the choice by trials, and 0.5 where there are none. For the 10 % quantile: the fourth power "
            "between stretches, which was worse with a correction, and mean weights, which were better on the "
            "U-Net and up to 8 dB worse on the image model. Without weights nothing tells a plan that early "
            "errors grow on a variance-preserving noise schedule; a few measured weights of one sample make up "
            "for most of that, see [how little calibration is enough](plans.md#how-little-calibration-is-enough).",
            "",
            f"`{FULL}` is `best_plan`: the trials in the profile choose among the line along the path corrected by "
            f"0.8, by 0.5, and alone. `{ONE_RUN}` knows the distances between the outputs of a single run, and "
            "corrects by 0.8, on the variance-preserving noise schedule by 0.5; so does what needs no profile, which "
            "extrapolates in the sampler's own time. `as published` is the authors' rule with their stand-in, swept "
            "over its threshold: SenCache's, TeaCache's and MagCache's numbers are calibrated on these models.",
            "",
            f"Generated by `bench/peers/page.py` from `bench/results/peers.csv`, measured with {versions} on "
            f"{first['machine']}; `make bench-peers` measures what the file lacks, and writes this page.",
            "",
        ]
    )


def _differences(
    rows: Sequence[Row], cells: Sequence[Cell], own: Iterable[str], others: Sequence[str], what: str
) -> dict[Cell, float]:
    """Return by how much the best of ``own`` is above the best of the others, by one figure, in cells with both."""
    found = {}
    for cell in cells:
        mine = [float(row[what]) for method in own if (row := best(rows, cell, method)) is not None]
        beside = [float(row[what]) for method in others if (row := best(rows, cell, method)) is not None]
        if mine and beside:
            found[cell] = max(mine) - max(beside)
    return found


def _at_defaults(rows: Sequence[Row], cases: Sequence[tuple[str, str]]) -> str:
    """Compare the two rules at their own defaults, where both run."""
    said = []
    for case in cases:
        own, other = (
            next((row for row in _of(rows, *case) if (row["method"], row["setting"]) == wanted and _served(row)), None)
            for wanted in (DEFAULT, SEA_DEFAULT)
        )
        if own is not None and other is not None:
            gain = float(own["mean"]) - float(other["mean"])
            work, theirs = float(own["work"]), float(other["work"])
            said.append(f"{case[0]} with {case[1]} {gain:+.1f} dB at {work:.0%} against {theirs:.0%}")
    return "; ".join(said) or "not measured"


def _short(said: str, gains: Mapping[Cell, float], slack: float = SLACK) -> str:
    """List the cells that fall short."""
    below = [
        f"{model} with {solver} at {level:.0%} ({gain:+.1f} dB)"
        for (model, solver, level), gain in gains.items()
        if gain < -slack
    ]
    if not below:
        return f"{said} in none, the least is {min(gains.values()):+.1f} dB"
    return f"{said} in {len(below)}: {', '.join(below)}"


def _nearest(rows: Sequence[Row], cases: Sequence[tuple[str, str]]) -> list[str]:
    """Compare the solvers by the distance to the exact solution, uncached and planned."""
    lines = [
        "Mean PSNR against the end of the differential equation (Heun in 200 steps, DDIM in 1000 for the image model): "
        "a cached run can be no nearer than its solver is, but a good solver with few evaluations can be nearer than a "
        "poor one with all.",
        "",
        "| model | solver | all 50 | " + " | ".join(f"planned, {level:.0%}" for level in LEVELS) + " |",
        "| --- | --- | --- |" + " --- |" * len(LEVELS),
    ]
    winners = []
    for model in dict.fromkeys(model for model, _ in cases):
        solvers = [solver for name, solver in cases if name == model]
        planned = {}
        for solver in solvers:
            whole = next((row for row in _of(rows, model, solver) if row["method"] == UNCACHED), None)
            found = [best(rows, (model, solver, level), FULL) for level in LEVELS]
            planned[solver] = [math.nan if row is None else float(row["exact"]) for row in found]
            cells = " | ".join("-" if row is None else f"{float(row['exact']):.1f}" for row in found)
            lines.append(
                f"| {model} | {solver} | {'-' if whole is None else format(float(whole['exact']), '.1f')} | {cells} |"
            )
        if len(solvers) > 1:
            winner = max(solvers, key=lambda solver: mean(planned[solver]))
            gain = mean(planned[winner]) - mean(planned[solvers[0]])
            winners.append(f"{model}: {winner}" + (f" ({gain:+.1f} dB)" if winner != solvers[0] else ""))
    advice = f"Take the solver that is nearest under the plan, in the mean over these levels: {'; '.join(winners)}."
    return [*lines, "", *([advice, ""] if winners else [])]


def _of(rows: Sequence[Row], model: str, solver: str) -> list[Row]:
    return [row for row in rows if (row["model"], row["solver"]) == (model, solver)]


def _section(rows: Sequence[Row], case: tuple[str, str]) -> list[str]:
    model, solver = case
    own = [row for row in _of(rows, *case) if row["method"] != UNCACHED]
    methods = dict.fromkeys((*OURS_FIRST, *sorted(row["method"] for row in own)))
    served = [method for method in methods if _any(own, method, _served)]
    beyond = []
    lines = [f"## {model}, {solver}", "", "| method | " + " | ".join(f"{level:.0%}" for level in LEVELS) + " |"]
    lines.append("| --- |" + " --- |" * len(LEVELS))
    for method in served:
        found = [best(rows, (model, solver, level), method) for level in LEVELS]
        if any(row is not None for row in found):
            lines.append(f"| {method} | " + " | ".join(map(_cell, found)) + " |")
        else:
            least = min(float(row["work"]) for row in own if row["method"] == method and _served(row))
            beyond.append(f"{method} (no setting takes less than {least:.0%})")
    return [*lines, "", *([f"Beyond the levels: {', '.join(beyond)}.", ""] if beyond else [])]


def _not_served(rows: Sequence[Row]) -> list[str]:
    """List the methods that raised on a model, with what they raised."""
    failures: dict[tuple[str, str], str] = {}
    for row in rows:
        if row["failed"]:
            failures.setdefault((row["model"], row["method"]), row["failed"])
    lines = [f"- {method} on {model}: `{reason}`." for (model, method), reason in failures.items()]
    return [*lines, ""] if lines else []


def _any(rows: Sequence[Row], method: str, holds: Callable[[Row], bool]) -> bool:
    return any(row["method"] == method and holds(row) for row in rows)


def _served(row: Row) -> bool:
    return not row["failed"]


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    unstable = f" ({row['unstable']} unstable)" if int(row["unstable"]) else ""
    return f"{float(row['mean']):.1f}, {float(row['lowest_tenth']):.1f}, {float(row['worst']):.1f}{unstable}"


if __name__ == "__main__":
    PAGE.write_text(page(read()))
    print(PAGE)
