"""From what a caller gives as a tolerance to a `ToleranceSchedule`."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cachepolicies.base.errors import PluginError, SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.base.specs import has_settings
from cachepolicies.contracts.tolerance import ToleranceSchedule
from cachepolicies.tolerances.constant import Constant
from cachepolicies.tolerances.of_t import OfT

if TYPE_CHECKING:
    from cachepolicies.planning.plan_record import Plan

Tolerance: TypeAlias = "float | str | Path | Plan | Callable[[float], float] | ToleranceSchedule"
"""What a policy with a tolerance takes; see `as_tolerance`."""


def as_tolerance(value: Tolerance) -> ToleranceSchedule:
    """Return the tolerance schedule that a value stands for.

    Args:
        value: a number, the same at every step; the name or spec of a registered schedule, ``"optimal:nfe=22"``; a
            plan, or the path of its file, as a ``Path`` or as text that ends in ``.json``; a function of t; or a
            schedule itself.

    Raises:
        UnknownNameError: no schedule is registered under the name.
        SettingsError: a setting is wrong, or the value is nothing of the kind.
        PlanError: the plan's file cannot be read.
        PluginError: what is registered under the name makes no schedule.
    """
    given: Any = value
    if isinstance(given, (Real, np.bool_)):  # Constant refuses the booleans
        return Constant(given)
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith(".json") and not has_settings(value)):
        from cachepolicies.tolerances.planned import Planned

        return Planned(path=value)
    if isinstance(value, str):
        from cachepolicies.registry.load import tolerances

        made: object = tolerances().create(value)
        schedule = _as_object(made)
        if schedule is None:
            raise PluginError(
                f"tolerance schedule {value!r} made a {type(made).__name__}; a factory returns a ToleranceSchedule or "
                "a function of t"
            )
        return schedule
    schedule = _as_object(value)
    if schedule is not None:
        return schedule
    from cachepolicies.planning.plan_record import Plan
    from cachepolicies.tolerances.planned import Planned

    if isinstance(value, Plan):
        return Planned(plan=value)
    raise SettingsError(
        f"a tolerance is a number >= 0, the name or spec of a tolerance schedule, a plan or the path of one (.json), "
        f"or a function of t; got {shown(value)} ({type(value).__name__}). `cachepolicies schedules` lists the names"
    )


def _as_object(value: object) -> ToleranceSchedule | None:
    """Return a schedule, or a function as one; ``None`` for anything else."""
    if isinstance(value, type):
        return None
    if isinstance(value, ToleranceSchedule):
        return value
    return OfT(value) if callable(value) else None
