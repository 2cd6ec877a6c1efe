"""`plan_depth`: plan which places of a network to compute at which steps, and keep what samples better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import evolve
from numpy.typing import NDArray

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.provenance import utc_now, versions_of
from cachepolicies.base.units import row_rms
from cachepolicies.calibration.places import measure_places
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.calibration.trials import TRIED, evaluations_bar, sampled
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.planning.depth import DepthSolution, PlaceErrors, depth_solutions, steps_alone
from cachepolicies.planning.depth_record import DepthPlan, PlacePart, work_of
from cachepolicies.planning.errors import as_extrapolation
from cachepolicies.planning.plan_record import Plan
from cachepolicies.planning.planner import plan
from cachepolicies.planning.problem import Solution
from cachepolicies.policies.depth_schedule import DepthSchedule
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.substitutes.resolve import substitute_on
from cachepolicies.wrapper.denoiser import CachedDenoiser

if TYPE_CHECKING:
    from rich.console import Console

_SMALLEST = 1e-10


def plan_depth(
    profile: Profile,
    model: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    work: float,
    *,
    site: str = "attention+mlp",
    output: str = TRIED,
    inside: str = "hold",
    errors: PlaceErrors | None = None,
    candidates: int = 4,
    progress: bool = True,
    console: Console | None = None,
) -> DepthPlan:
    """Plan in step and depth under a budget of FLOPs.

    For every number of calls the best places are solved for (`cachepolicies.planning.depth_solutions`). The prediction
    is rough; so the plans of which most is predicted, and the plan in steps alone of the same work, are sampled. One
    that computes parts of calls is taken if it is better than the plan in steps alone by more than twice the standard
    error of the mean over the samples, so that chance does not choose.

    Args:
        profile: calibrated with this scheduler; says the weights of the steps and the errors of skipped calls.
        model: as for `calibrate`.
        scheduler: of the run: whatever `as_scheduler` takes.
        samples: noise, conditioning and seeds to measure and to choose on, two at least. Judge the plan on others.
        work: most FLOPs of a run, a part of those of N full calls; rounded down to whole calls.
        site: of the places inside.
        output: spec of the substitute for skipped calls.
        inside: spec of the substitute at the places, a linear combination.
        errors: what `measure_places` returned for these, if it was called already.
        candidates: plans in step and depth that are sampled, at least 1.
        progress: show a progress bar on stderr.
        console: where to show it instead.

    Returns:
        The plan. Run it with the policy ``depth-schedule`` and the profile.

    Raises:
        NeedsError, ProfileError, PolicyError: see `measure_places` and `cachepolicies.planning.plan`.
        SettingsError: the work is less than one call's, fewer than two samples, no candidate, or a setting is unknown.
    """
    found = as_scheduler(scheduler)
    steps = profile.num_steps
    if len(samples) < 2 or candidates < 1:
        raise SettingsError(f"{len(samples)} samples and {candidates} candidates; give at least 2 and 1 to choose by")
    measured = measure_places(model, found, samples, steps, site=site) if errors is None else errors
    if not 1 / steps - 1e-9 <= work <= 1:
        raise SettingsError(f"work is {work:g} of {steps} calls; give from {1 / steps:g}, one call, to 1")
    whole = plan(profile, math.floor(work * steps + 1e-9), substitute=output, scheduler=found)
    line = as_extrapolation(substitute_on(inside, found, profile))
    curve = [Solution(point.budget, point.predicted, point.refreshes) for point in whole.curve]
    alone = steps_alone(measured, next(one for one in curve if one.budget == whole.budget), steps)
    weights, equal = np.array(whole.weights), whole.budget / steps
    solved = depth_solutions(measured, whole.timesteps, weights, curve, equal, line)
    deep = [one for one in solved if any(part != one.calls for part in one.steps)][:candidates]
    made = [_record(one, whole, measured, site, output, inside) for one in (alone, *deep)]
    tried = _tried(made, profile, model, found, samples, progress, console)
    gains = [each - tried[0] for each in tried]
    surely = [float(g.mean()) - 2.0 * float(g.std(ddof=1)) / math.sqrt(len(g)) for g in gains[1:]]
    means = tuple(float(gain.mean()) for gain in gains)
    best = 1 + int(np.argmax(surely)) if surely and max(surely) > 0 else 0
    return evolve(made[best], gained=means[best], gains=means[1:])


def _record(
    solution: DepthSolution, whole: Plan, errors: PlaceErrors, site: str, output: str, inside: str
) -> DepthPlan:
    parts = tuple(
        PlacePart(place, float(share), steps)
        for place, share, steps in zip(errors.places, errors.shares, solution.steps, strict=True)
    )
    return DepthPlan(
        source=whole.source,
        timesteps=whole.timesteps,
        site=site,
        output=output,
        inside=inside,
        calls=solution.calls,
        parts=parts,
        work=work_of(solution.calls, parts, whole.num_steps),
        predicted=solution.predicted,
        bound=solution.bound,
        versions=versions_of("cachepolicies", "numpy", "scipy"),
        created=utc_now(),
    )


def _tried(
    plans: Sequence[DepthPlan],
    profile: Profile,
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    progress: bool,
    console: Console | None,
) -> list[NDArray[np.float64]]:
    """Return ``-20 log10`` of the RMS error of every sample with every plan, dB."""
    steps, rows = profile.num_steps, len(samples)
    total = rows * (steps + sum(len(one.calls) for one in plans))
    found = []
    with (
        evaluations_bar(f"trying plans in step and depth of {profile.name}", total, progress, console) as advance,
        torch.no_grad(),
    ):
        reference = sampled(scheduler, samples, steps, model).double()
        advance(rows * steps)
        for one in plans:
            cached = CachedDenoiser(model, DepthSchedule(one), profile=profile, scheduler=scheduler)
            errors = row_rms(sampled(scheduler, samples, steps, cached).double() - reference).cpu().numpy()
            found.append(-20.0 * np.log10(np.maximum(errors, _SMALLEST)))
            advance(rows * len(one.calls))
    return found
