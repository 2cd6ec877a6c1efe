"""The trials of plans that ``calibrate`` ends with, and ``trials`` makes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from cachepolicies.base.errors import SettingsError
from cachepolicies.comparison.workload import Workload
from cachepolicies.profiles.schema import Profile

FURTHER = 8
"""Samples that are tried beside the calibration's own."""


def try_and_save(
    workload: Workload, profile: Profile, out: Path, further: int, *, substitute: str | None, **plans: Any
) -> Profile:
    """Try plans on the calibration samples and on the seeds after them; write the profile with what was found.

    Raises:
        SettingsError: the profile has no seeds, so that its samples cannot be drawn again; or as `try_plans`.
    """
    from cachepolicies.calibration import CalibrationSamples, try_plans
    from cachepolicies.calibration.trials import TRIED
    from cachepolicies.profiles.io import save_profile

    if not profile.seeds:
        raise SettingsError(f"profile {profile.name!r} has no seeds, so that its samples cannot be told from others")
    after = max(profile.seeds) + 1
    own = profile.seeds if profile.samples > 1 else ()  # a plan from the others needs others
    seeds = (*own, *range(after, after + further))
    drawn = workload.draw(seeds)
    tried = try_plans(
        profile,
        workload.denoiser,
        workload.scheduler,
        CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=seeds),
        substitute=TRIED if substitute is None else substitute,
        weights=plans.pop("weights", "geometric" if "weight" in profile.curves else "uniform"),
        decode=workload.pictures,
        console=Console(stderr=True),
        **plans,
    )
    save_profile(tried, out)
    return tried
