"""Meeting a budget with a policy that has a threshold: it is solved for on the calibration runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.contracts.policy import PolicySettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.planning.replay import CalibrationRuns

_FIRST = 0.1
_FACTOR = 4.0
_WIDEST = 24
"""Factors of four from the first threshold that is tried, up and down."""

_HALVINGS = 24


def settings_for(settings: PolicySettings, evaluations: int, num_steps: int, setup: Setup) -> PolicySettings:
    """Return the settings with which a policy takes a number of evaluations in the mean.

    The policy is replayed on the calibration runs of the profile with one threshold after another; what was left open
    and would limit reuse (a retention window, a longest streak) gives way to the budget. Of two neighbouring thresholds
    the one that comes nearer is taken.

    Args:
        settings: of a policy that names its knob.
        evaluations: of a run.
        num_steps: N of the run.
        setup: everything but the policy, resolved.

    Raises:
        SettingsError: the policy has no knob, or it was given beside the budget.
        NeedsError: there is no profile, or it lacks what the policy looks at.
    """
    knob = settings.knob
    if knob is None:
        raise SettingsError(
            f"policy {settings.name!r} names no setting that a budget could be solved for; leave the policy out, or "
            "give its settings without a budget"
        )
    open_ = settings.for_budget(evaluations, num_steps)
    if knob == "evaluations":
        return open_.with_knob(float(evaluations))
    profile = setup.profile
    if profile is None or not profile.timesteps or "displacement" not in profile.tables:
        known = "none was given" if profile is None else f"{profile.name!r} has no runs to solve on"
        raise NeedsError(
            f"a budget for policy {settings.name!r} is met by solving for its {knob} on the runs of a measured "
            f"profile, and {known}; give {knob}=..., leave the policy out, or calibrate first"
        )
    runs = CalibrationRuns(profile)
    wanted = float(evaluations)

    def found(threshold: float) -> float:
        made = open_.with_knob(threshold)
        own = made.simulated(profile)
        if own is not None:
            return float(np.mean(own))
        resolved = made.resolve(setup)
        if resolved.observes_places or resolved.verifies:
            looks = "looks at what flows at every place" if resolved.observes_places else "verifies what it reuses"
            raise NeedsError(
                f"policy {settings.name!r} {looks}, which a profile does not tell: a budget "
                f"cannot be solved for; give {knob}=..., or let its settings say how many steps they evaluate "
                "(`simulated`)"
            )
        return float(np.mean(runs.evaluations(resolved)))

    low, high = _bracket(found, wanted)
    above, below = found(low), found(high)
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        here = found(middle)
        if here >= wanted:
            low, above = middle, here
        else:
            high, below = middle, here
        if above == wanted:
            break
    return open_.with_knob(low if abs(above - wanted) <= abs(below - wanted) else high)


def _bracket(found: Callable[[float], float], wanted: float) -> tuple[float, float]:
    """Return two thresholds with at least and with fewer than the evaluations that are wanted, as far as there are."""
    low = high = _FIRST
    for _ in range(_WIDEST):
        if found(low) >= wanted:
            break
        low /= _FACTOR
    for _ in range(_WIDEST):
        if found(high) < wanted:
            break
        high *= _FACTOR
    return low, high
