"""A plan in a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cachepolicies.base.console import PlainTable
from cachepolicies.planning.expectation import Expectation
from cachepolicies.planning.plan_fields import PlanFields, PlanPoint

_ROWS = 9


def summarise_plan(plan: PlanFields, *, curve: bool = False) -> Group:
    """Return what a plan is for, what it refreshes, and its trade-off curve, as a rich renderable.

    Args:
        plan: the plan.
        curve: every budget of the trade-off curve instead of a few around the plan's own.
    """
    parts = [_facts_table(plan), _trade_off_table(plan, plan.curve if curve else _chosen_points(plan))]
    if plan.tolerance is not None:
        parts.append(_tolerance_table(plan))
    return Group(*parts)


def steps_text(steps: Sequence[int]) -> str:
    """Return increasing steps as text, runs of three and more neighbours as ``first-last``."""
    words = []
    start = 0
    for end in range(1, len(steps) + 1):
        if end < len(steps) and steps[end] == steps[end - 1] + 1:
            continue
        block = steps[start:end]
        words += [f"{block[0]}-{block[-1]}"] if len(block) > 2 else [str(step) for step in block]
        start = end
    return " ".join(words)


def _facts_table(plan: PlanFields) -> Table:
    table = PlainTable(title=f"plan for {plan.source.model_class}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    source, scheduler = plan.source, plan.source.scheduler
    longest = max(after - before - 1 for before, after in pairwise((*plan.refreshes, plan.num_steps)))
    rows = {
        "profile": f"{source.profile}, {source.samples} sample{'s' if source.samples > 1 else ''}, "
        f"made {source.created or 'at an unknown time'}",
        "scheduler": "not stated" if scheduler is None else f"{scheduler.name} ({scheduler.family})",
        "guidance": "none" if source.guidance is None else f"{source.guidance:g}",
        "steps": f"{plan.num_steps}, t from {plan.timesteps[0]:g} to {plan.timesteps[-1]:g}",
        "substitute": plan.substitute,
        "objective": f"{plan.objective} of weighted errors, {plan.errors} errors, {plan.weights_kind} weights",
        "max_reuse": f"{'no limit' if plan.max_reuse is None else plan.max_reuse}; {longest} at most in this plan",
        "always": steps_text(plan.always) or "none",
        "budget": f"{plan.budget} evaluations of {plan.num_steps}"
        + ("" if plan.evaluations == plan.budget else f", {plan.evaluations} used"),
        "target": "none" if plan.target is None else _target_text(plan),
        "expected of new samples": _expected_text(plan.expected),
        "predicted error": f"{plan.predicted:.4g} (sum {plan.total:.4g}, largest {plan.largest:.4g})",
        "refreshes": steps_text(plan.refreshes),
        "tolerance": f"none: {plan.no_tolerance}" if plan.tolerance is None else _margin_text(plan),
        "versions": ", ".join(f"{name} {version}" for name, version in plan.versions.items()) or "none",
        "created": plan.created or "unknown",
    }
    if plan.notes:
        rows["notes"] = plan.notes
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table


def _target_text(plan: PlanFields) -> str:
    return f"{plan.target:g}" + ("" if plan.target_unit == "objective" else f" {plan.target_unit}")


def _expected_text(expected: Expectation | None) -> str:
    if expected is None:
        return "unknown: the profile has no trials of such plans"
    error = 10.0 ** (-expected.error.mean / 20.0)
    rms = f"RMS {error:.2g}, nine in ten below {10.0 ** (-expected.error.low / 20.0):.2g}"
    psnr = expected.psnr
    shown = "" if psnr is None else f"PSNR {psnr.mean:.1f} dB, nine in ten above {psnr.low:.1f}; "
    return f"{shown}{rms} ({expected.samples} samples tried)"


def _margin_text(plan: PlanFields) -> str:
    if plan.tolerance is None or plan.tolerance.margin is None:
        return "a curve of t, without a margin"
    return f"a curve of t; scores along the plan keep off it by a factor of {math.exp(plan.tolerance.margin):.3g}"


def _chosen_points(plan: PlanFields) -> tuple[PlanPoint, ...]:
    """Return the points at both ends, at the plan's own budget, and a few between."""
    own = next(index for index, point in enumerate(plan.curve) if point.budget == plan.budget)
    last = len(plan.curve) - 1
    chosen = {own, *(round(row * last / (_ROWS - 1)) for row in range(_ROWS))}
    return tuple(plan.curve[index] for index in sorted(chosen))


def _trade_off_table(plan: PlanFields, points: Sequence[PlanPoint]) -> Table:
    table = PlainTable(title="the best for every budget" if len(points) > 1 else "the best", title_justify="left")
    table.add_column("budget", justify="right")
    table.add_column("predicted error", justify="right")
    tried = any(point.expected is not None for point in points)
    if tried:
        table.add_column("expected dB, nine in ten above", justify="right")
    table.add_column("refresh steps", overflow="fold")
    for point in points:
        style = "bold" if point.budget == plan.budget else ""
        cells = [str(point.budget), f"{point.predicted:.4g}", *([_brief(point.expected)] if tried else [])]
        table.add_row(*cells, Text(steps_text(point.refreshes)), style=style)
    return table


def _brief(expected: Expectation | None) -> str:
    if expected is None:
        return ""
    shown = expected.error if expected.psnr is None else expected.psnr
    return f"{shown.mean:.1f}, {shown.low:.1f}"


def _tolerance_table(plan: PlanFields) -> Table:
    table = PlainTable(title="tolerance", title_justify="left")
    for column in ("t", "epsilon"):
        table.add_column(column, justify="right")
    if plan.tolerance is not None:
        last = len(plan.tolerance.t) - 1
        for index in sorted({round(row * last / (_ROWS - 1)) for row in range(_ROWS)}):
            table.add_row(f"{plan.tolerance.t[index]:g}", f"{plan.tolerance.epsilon[index]:.4g}")
    return table
