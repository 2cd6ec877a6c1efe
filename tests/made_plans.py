"""Plans made by hand, for tests of what follows a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cachepolicies.planning.plan_record import Plan, PlanPoint, PlanSource
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.profiles.schema import SchedulerInfo


def plan_of(
    timesteps: Sequence[float],
    refreshes: Sequence[int],
    *,
    substitute: str = "hold",
    model_class: str = "Counted",
    scheduler: SchedulerInfo | None = None,
    tolerance: ToleranceCurve | None = None,
) -> Plan:
    """A valid plan with these refreshes; errors and weights are made up."""
    steps, taken = len(timesteps), tuple(refreshes)
    errors = tuple(0.0 if k in taken else 0.1 for k in range(steps))
    settings: dict[str, Any] = {
        "source": PlanSource("by-hand", model_class, scheduler, None, steps, 2),
        "timesteps": timesteps,
        "substitute": substitute,
        "objective": "sum",
        "errors": "measured",
        "weights_kind": "uniform",
        "method": "shortest-path",
        "max_reuse": None,
        "always": (),
        "budget": len(taken),
        "target": None,
        "refreshes": taken,
        "predicted": sum(errors),
        "weights": (1.0,) * steps,
        "step_errors": errors,
        "curve": (PlanPoint(len(taken), sum(errors), taken),),
        "tolerance": tolerance,
        "no_tolerance": "made by hand" if tolerance is None else None,
    }
    return Plan(**settings)
