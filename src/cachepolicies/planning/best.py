"""The best plan of a profile: with the substitute whose trials say that it gives most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.planning.expectation import Expectation
from cachepolicies.planning.plan_record import Plan
from cachepolicies.planning.planner import plan
from cachepolicies.profiles.format import RETRY
from cachepolicies.profiles.schema import Profile


def best_plan(
    profile: Profile | str | Path, budget: int | None = None, *, target: str | None = None, scheduler: object = None
) -> Plan:
    """Plan with every substitute that the profile has trials of, and return the plan that is expected to be best.

    With a budget that is the one with the highest expected mean, in the PSNR of pictures where the trials have it, else
    in the latent's error; with a target the one with the fewest evaluations, and of these the one with the highest
    mean. Where no trials reach down to the budget, the plan of the trials that come first is returned.

    Args:
        profile: has at least one `cachepolicies.profiles.Trials`, or where to load it from.
        budget: as for `cachepolicies.planning.plan`. Give this or ``target``.
        target: as there, with its unit, such as ``"45dB"``.
        scheduler: as there.

    Returns:
        The plan; its ``substitute`` is the one to run it with.

    Raises:
        NeedsError: the profile has no trials.
        SettingsError: both or neither of budget and target, or a target without a unit.
    """
    from cachepolicies.profiles.load import load_profile

    loaded = profile if isinstance(profile, Profile) else load_profile(profile)
    if (budget is None) == (target is None):
        raise SettingsError(f"give either budget or target, got budget={budget!r} and target={target!r}")
    if target is not None and not isinstance(target, str):
        raise SettingsError(f"target is {target!r}; plans of several substitutes are compared by '45dB' or '0.01rms'")
    if not loaded.trials:
        raise NeedsError(f"profile {loaded.name!r} has no trials to choose a substitute by; {RETRY}")
    made = []
    for tried in loaded.trials:
        settings: dict[str, Any] = {"objective": tried.objective, "weights": tried.weights, "scheduler": scheduler}
        made.append(plan(loaded, budget, target=target, substitute=tried.substitute, **settings))
    if target is None:
        return max(made, key=lambda one: _mean(one.expected))
    return min(made, key=lambda one: (one.evaluations, -_mean(one.expected)))


def _mean(expected: Expectation | None) -> float:
    if expected is None:
        return float("-inf")
    return expected.error.mean if expected.psnr is None else expected.psnr.mean
