"""Whether a plan was made for what is in use: its steps and tolerances are wrong for another substitute."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cachepolicies._errors import SettingsError
from cachepolicies._setup import Setup
from cachepolicies._substitute import Extrapolation, InSchedulerTime, Substitute
from cachepolicies.schedulers.resolve import scheduler_of

if TYPE_CHECKING:
    from cachepolicies.planning._plan import Plan
    from cachepolicies.profiles.schema import Profile

_ROUNDING = 1e-4
"""Weights closer than this, relative to 1, are the same: a scheduler's tables may be kept in float32."""


def check_planned_for(plan: Plan, setup: Setup, subject: str) -> None:
    """Check that a plan was made for the substitute in use, and for the class of model that the profile is about.

    Two substitutes are the same if they weigh what is remembered in the same way on the plan's timesteps, whatever
    their guards; so that one that follows the scheduler's time is told from one that extrapolates in t.

    Args:
        plan: the plan.
        setup: what is in use.
        subject: of the message.

    Raises:
        SettingsError: it was made for something else.
        UnknownNameError: its substitute is not registered.
    """
    profile, used = setup.profile, setup.substitute
    if profile is not None and profile.model.class_name != plan.source.model_class:
        raise SettingsError(
            f"{subject}: the plan was made for a {plan.source.model_class}, and profile {profile.name!r} is of a "
            f"{profile.model.class_name}; plan with the profile in use"
        )
    if plan.substitute.partition(":")[0] != used.name or not same_substitute(
        _substitute_of(plan, profile), used, plan.timesteps
    ):
        raise SettingsError(
            f"{subject}: the plan was made for the substitute {plan.substitute!r}, and {used!r} is in use; give "
            f"substitute={plan.substitute!r} and the scheduler of the plan, or make a plan for the one in use"
        )


def _substitute_of(plan: Plan, profile: Profile | None) -> Substitute:
    from cachepolicies._plugins import substitutes

    made = substitutes().create(plan.substitute)
    if isinstance(made, InSchedulerTime):
        info = plan.source.scheduler
        return made.on(None if info is None else scheduler_of(info), profile)
    return made


def same_substitute(
    planned: Substitute, used: Substitute, timesteps: tuple[float, ...], rounding: float = _ROUNDING
) -> bool:
    """Return whether two substitutes weigh what is remembered in the same way on these timesteps.

    Args:
        planned: one of them.
        used: the other.
        timesteps: of a run.
        rounding: largest difference of two weights, relative to the largest.
    """
    if planned.name != used.name:
        return False
    if not isinstance(planned, Extrapolation) or not isinstance(used, Extrapolation):
        return planned == used
    if planned.order != used.order:
        return False
    order = planned.order
    for k in range(1, len(timesteps) if order else 0):
        refreshes = timesteps[max(0, k - 1 - order) : k][::-1]
        one, other = (each.coefficients(timesteps[k], refreshes) for each in (planned, used))
        if len(one) != len(other):
            return False
        size = max(1.0, *(abs(c) for c in one))
        if not all(math.isclose(a, b, rel_tol=0.0, abs_tol=rounding * size) for a, b in zip(one, other, strict=True)):
            return False
    return True
