"""Draw a plan: the tolerance, the weights with the errors, and the trade-off curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachepolicies.base.figures import new_figure, save_figure
from cachepolicies.planning.plan_record import Plan


def plot_plan(plan: Plan, path: str | Path) -> Path:
    """Draw eps(t) with the refreshes, the weights with the weighted errors, and what every budget would predict.

    Time runs from left to right, so the t axes are inverted.

    Args:
        plan: the plan; without a tolerance, its panel says why there is none.
        path: of the picture; the suffix chooses the format (``.png``, ``.svg``, ``.pdf``). Its folder is created.

    Returns:
        The path.

    Raises:
        NeedsError: matplotlib is not installed.
        SettingsError: matplotlib cannot write this format.
    """
    figure = new_figure("a plan", 13.5, 3.9)
    tolerance, weights, trade_off = figure.subplots(1, 3)
    _draw_tolerance(tolerance, plan)
    _draw_weights(weights, plan)
    _draw_trade_off(trade_off, plan)
    figure.suptitle(
        f"{plan.source.profile}: {plan.evaluations} of {plan.num_steps} evaluations, substitute {plan.substitute}, "
        f"objective {plan.objective}"
    )
    return save_figure(figure, path)


def _draw_tolerance(axes: Any, plan: Plan) -> None:
    refreshed = [plan.timesteps[step] for step in plan.refreshes]
    curve = plan.tolerance
    if curve is None:
        axes.text(
            0.5, 0.5, f"no tolerance:\n{plan.no_tolerance}", ha="center", va="center", wrap=True,
            transform=axes.transAxes, fontsize="small", parse_math=False,
        )  # fmt: skip
        axes.set_xlim(min(plan.timesteps), max(plan.timesteps))
        axes.set_yticks([])
    else:
        axes.plot(curve.t, curve.epsilon, color="C0", label=r"$\epsilon(t)$")
        if min(curve.epsilon) > 0:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    axes.plot(
        refreshed, [0.02] * len(refreshed), "|", color="C3", label="refresh", transform=axes.get_xaxis_transform()
    )
    axes.set_xlabel("t")
    axes.set_ylabel("tolerance (RMS change of the output)")
    axes.invert_xaxis()
    axes.legend(frameon=False)


def _draw_weights(axes: Any, plan: Plan) -> None:
    axes.plot(plan.timesteps, plan.weights, color="C0", label=f"weight ({plan.weights_kind})")
    axes.set_ylabel("weight")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("t")
    axes.invert_xaxis()
    weighted = [weight * error for weight, error in zip(plan.weights, plan.step_errors, strict=True)]
    beside = axes.twinx()
    beside.vlines(plan.timesteps, 0, weighted, color="C1", label=f"weight x error ({plan.errors})")
    beside.set_ylabel("weighted error of a reuse")
    beside.set_ylim(bottom=0)
    handles = [pair for each in (axes, beside) for pair in zip(*each.get_legend_handles_labels(), strict=True)]
    beside.legend(*zip(*handles, strict=True), frameon=False)


def _draw_trade_off(axes: Any, plan: Plan) -> None:
    shown = [point for point in plan.curve if point.predicted > 0]  # a logarithm has no 0, which N refreshes reach
    if shown:
        axes.set_yscale("log")
    axes.plot([p.budget for p in shown or plan.curve], [p.predicted for p in shown or plan.curve], ".-", ms=3)
    if plan.predicted > 0 or not shown:
        axes.plot([plan.budget], [plan.predicted], "o", color="C3", label=f"budget {plan.budget}")
    else:
        axes.axvline(plan.budget, color="C3", label=f"budget {plan.budget}: 0")
    axes.set_xlabel("evaluations")
    axes.set_ylabel(f"predicted {plan.objective} of weighted errors")
    axes.legend(frameon=False)
