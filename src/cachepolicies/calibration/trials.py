"""`try_plans`: what planned runs are off by, on samples that their plans were not made from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from torch import Tensor

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.base.provenance import versions_of
from cachepolicies.base.settings import shown
from cachepolicies.base.units import row_rms
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.planning.planner import plan
from cachepolicies.planning.weights import WeightKind
from cachepolicies.policies.schedule import Schedule
from cachepolicies.profiles.schema import Profile, Trials
from cachepolicies.profiles.subset import of_samples
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.schedulers.sample import sample
from cachepolicies.wrapper.denoiser import CachedDenoiser

if TYPE_CHECKING:
    from rich.console import Console

TRIED = "linear:time=path,correct=0.8"
"""The substitute that is tried where nobody names one: the best on the reference models."""

_PARTS = (0.16, 0.2, 0.26, 0.34, 0.44, 0.56, 0.72)
"""Parts of a run that are tried where nobody says which: close together where quality changes fastest."""


def try_plans(
    profile: Profile,
    model: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    *,
    substitute: str = TRIED,
    objective: str = "signed",
    weights: WeightKind = "geometric",
    budgets: Sequence[int] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> Profile:
    """Sample with plans from a profile, and record how far the samples are from the uncached ones.

    A sample whose seed is one of the profile's is tried with the plan that the *other* calibration samples give; any
    other sample with the plan of all. So nothing is judged by what it was made from, and `cachepolicies.planning.plan`
    can say what to expect of new samples.

    Every sample takes N evaluations for the uncached run, and those of the budgets. Memory holds one run.

    Args:
        profile: a measured profile.
        model: as for `calibrate`.
        scheduler: the one that the profile was calibrated with: whatever `as_scheduler` takes.
        samples: noise, conditioning and seeds; 16 are better than 8, and fewer than 3 give no interval.
        substitute: spec of what stands in for a skipped evaluation.
        objective: name of a plan's objective.
        weights: kind of a plan's weights.
        budgets: numbers of evaluations, at least one; seven between 16 and 72 % of the steps if ``None``.
        decode: finished latents ``(B, ...)`` to pictures in [0, 1]; with it, PSNR can be expected too.
        progress: show a progress bar on stderr.
        console: where to show it instead.

    Returns:
        The profile with these `cachepolicies.profiles.Trials`, in place of earlier ones of the same substitute,
        objective and weights.

    Raises:
        InputError: a sample, or what ``decode`` returned, is not finite or has the wrong shape.
        NeedsError: the profile lacks what planning needs.
        SettingsError: no budget, or one that cannot be planned; a calibration of a single sample, which leaves nothing
            to plan from once it is left out; no seed where the scheduler draws noise.
    """
    found = as_scheduler(scheduler)
    steps = profile.num_steps
    tried = _budgets(budgets, steps)
    if found.stochastic and not samples.seeds:
        raise SettingsError(f"scheduler {found.name!r} draws noise, so trials need a seed per sample")
    plan_of = partial(plan, objective=objective, substitute=substitute, weights=weights, scheduler=scheduler)
    everyone = {budget: plan_of(profile, budget) for budget in tried}
    rms, pictures = [], []
    total = len(samples) * (steps + sum(tried))
    with evaluations_bar(f"trying plans of {profile.name}", total, progress, console) as advance, torch.no_grad():
        for row in range(len(samples)):
            one = samples.rows(row, row + 1)
            known = _without(profile, one)
            run = partial(sampled, found, one, steps)
            uncached = run(model)
            advance(steps)
            errors, apart = [], []
            for budget in tried:
                made = everyone[budget] if known is profile else plan_of(known, budget)
                cached = CachedDenoiser(
                    model, Schedule(plan=made), profile=profile, substitute=substitute, scheduler=found
                )
                result = run(cached)
                errors.append(_rms(result, uncached, row, "the sample"))
                if decode is not None:
                    apart.append(_rms(decode(result), decode(uncached), row, "the decoded sample"))
                advance(budget)
            rms.append(errors)
            pictures.append(apart)
    trials = Trials(
        substitute=substitute,
        objective=everyone[tried[0]].objective,
        weights=weights,
        budgets=tried,
        seeds=samples.seeds,
        rms=np.array(rms).T,
        picture_rms=None if decode is None else np.array(pictures).T,
        versions=versions_of("torch", "cachepolicies", "diffusers", "numpy"),
    )
    others = [t for t in profile.trials if not _same_plans(t, trials)]
    return attrs.evolve(profile, trials=(*others, trials))


def _same_plans(one: Trials, other: Trials) -> bool:
    return (one.substitute, one.objective, one.weights) == (other.substitute, other.objective, other.weights)


def _budgets(given: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    if given is None:
        return tuple(sorted({min(max(1, round(part * steps)), steps) for part in _PARTS}))
    budgets = tuple(sorted({*given}))
    if not budgets:
        raise SettingsError("budgets is empty; give numbers of evaluations, or None")
    return budgets


def _without(profile: Profile, one: CalibrationSamples) -> Profile:
    """Return what the calibration samples but this one say; the profile itself if this one is none of them."""
    if not one.seeds or one.seeds[0] not in profile.seeds:
        return profile
    if profile.samples == 1:
        raise SettingsError(
            f"seed {one.seeds[0]} is the only calibration sample of profile {profile.name!r}, so that without it there "
            "is nothing to plan from; try samples of other seeds"
        )
    own = profile.seeds.index(one.seeds[0])
    return of_samples(profile, [i for i in range(profile.samples) if i != own])


def sampled(scheduler: Scheduler, samples: CalibrationSamples, steps: int, denoiser: Callable[..., Any]) -> Tensor:
    """Sample with a denoiser; a stochastic scheduler draws each sample's noise from its seed."""
    generator = [torch.Generator().manual_seed(seed) for seed in samples.seeds] or None
    return sample(
        denoiser,
        scheduler,
        samples.noise,
        *samples.args,
        num_steps=steps,
        generator=generator if scheduler.stochastic else None,
        **samples.kwargs,
    )


def _rms(value: Tensor, reference: Tensor, row: int, what: str) -> float:
    if value.shape != reference.shape:
        raise InputError(f"{what} {row} has shape {tuple(value.shape)} cached and {tuple(reference.shape)} uncached")
    found = float(row_rms(value.double() - reference.double()))
    if not np.isfinite(found):
        raise InputError(f"{what} {row} is not finite: {shown(found)} from the uncached one; check dtype and scheduler")
    return found


@contextlib.contextmanager
def evaluations_bar(what: str, total: int, show: bool, console: Console | None) -> Iterator[Callable[[int], object]]:
    """Show a progress bar of evaluations, said to be for ``what``; yields what advances it."""
    if not show:
        yield lambda evaluations: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        bar.console.print(f"{what}: {total} denoiser evaluations", markup=False, highlight=False)
        task = bar.add_task("evaluations", total=total)
        yield lambda evaluations: bar.advance(task, evaluations)
