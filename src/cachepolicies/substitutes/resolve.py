"""From what a caller names a substitute by to a substitute, and whether two of them are the same."""

from __future__ import annotations

import math

from cachepolicies.base.errors import PolicyError
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Extrapolation, Substitute
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import substitutes

ROUNDING = 1e-4
"""Weights closer than this, relative to 1, are the same: a scheduler's tables may be kept in float32."""


def as_substitute(value: str | Substitute) -> Substitute:
    """Return the substitute that a registered name, a spec or an object stands for.

    Raises:
        UnknownNameError: no substitute is registered under the name.
        SettingsError: a setting is wrong.
        PolicyError: what the value stands for is no `Substitute`, or asks for no history.
    """
    made: object = substitutes().create(value) if isinstance(value, str) else value
    if not isinstance(made, Substitute):
        raise PolicyError(f"substitute {made!r} does not derive from cachepolicies.Substitute")
    if not isinstance(made.history, int) or made.history < 1:
        raise PolicyError(f"substitute {made.name!r} asks for a history of {made.history!r}; it is an integer >= 1")
    return made


def substitute_on(value: str | Substitute, scheduler: Scheduler | None, profile: Profile | None = None) -> Substitute:
    """Return a substitute resolved on a scheduler and a profile, where there is no model; raises as its ``resolve``."""
    return as_substitute(as_substitute(value).resolve(Setup(profile, scheduler=scheduler)))


def same_substitute(
    planned: Substitute, used: Substitute, timesteps: tuple[float, ...], rounding: float = ROUNDING
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
