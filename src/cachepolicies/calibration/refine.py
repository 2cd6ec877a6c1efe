"""`refine`: move the refreshes of a plan one at a time, and keep what is better when it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.units import row_rms
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.calibration.trials import evaluations_bar, sampled
from cachepolicies.planning.plan_record import Plan
from cachepolicies.policies.schedule import Schedule
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.wrapper.denoiser import CachedDenoiser

if TYPE_CHECKING:
    from rich.console import Console

_SMALLEST = 1e-10


@frozen
class Refinement:
    """What moving refreshes found.

    Attributes:
        refreshes: the steps to refresh, as many as in the plan.
        before: ``-20 log10`` of the RMS of the samples' error with the plan's own steps, the mean over the samples, dB.
        after: the same with these.
        evaluations: denoiser evaluations that were made, one row of a batch each; never more than allowed.
        tried: number of moves that were sampled.
    """

    refreshes: tuple[int, ...]
    before: float
    after: float
    evaluations: int
    tried: int


def refine(
    plan: Plan,
    profile: Profile,
    model: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    evaluations: int,
    *,
    seed: int = 0,
    progress: bool = True,
    console: Console | None = None,
) -> Refinement:
    """Move one refresh at a time to a neighbouring step, sample, and keep the move if the samples come nearer.

    A plan knows the errors of uncached runs; this looks at the true final error of cached ones. The moves are tried in
    a random order, again and again until none helps or the evaluations are spent. What it gains on the samples it looks
    at is only partly gained on others: give more samples rather than more evaluations.

    To use the steps, plan again with ``budget=len(refreshes)`` and ``always=refreshes``, or give them to the policy
    ``schedule``.

    Args:
        plan: where to begin.
        profile: that it was made from.
        model: as for `calibrate`.
        scheduler: of the run: whatever `as_scheduler` takes.
        samples: noise, conditioning and seeds. Those of the calibration do, others are as good.
        evaluations: the most to make, the uncached runs included.
        seed: of the order of the moves.
        progress: show a progress bar on stderr.
        console: where to show it instead.

    Returns:
        The steps, with the errors before and after on these samples.

    Raises:
        SettingsError: the evaluations do not suffice for the uncached runs and one move.
    """
    found = as_scheduler(scheduler)
    rows, steps = len(samples), plan.num_steps
    fixed, once = rows * steps, rows * plan.evaluations
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < fixed + 2 * once:
        raise SettingsError(
            f"evaluations={evaluations!r} cannot refine this plan on {rows} samples: the uncached runs take {fixed}, "
            f"the plan and every move {once} each; give at least {fixed + 2 * once}, or fewer samples"
        )
    run = partial(sampled, found, samples, steps)
    bar = evaluations_bar(f"refining a plan of {profile.name}", evaluations, progress, console)
    with bar as advance, torch.no_grad():
        reference = run(model).double()
        advance(fixed)
        spent = fixed

        def quality(refreshes: tuple[int, ...]) -> float:
            nonlocal spent
            cached = CachedDenoiser(
                model,
                Schedule(refreshes=refreshes, num_steps=steps),
                profile=profile,
                substitute=plan.substitute,
                scheduler=found,
            )
            result: Tensor = run(cached)
            spent += once
            advance(once)
            errors = row_rms(result.double() - reference).cpu().numpy()
            return float(np.mean(-20.0 * np.log10(np.maximum(errors, _SMALLEST))))

        best, before = plan.refreshes, quality(plan.refreshes)
        after, tried = before, 0
        seen = {best}
        moves = _moves(steps, best, np.random.default_rng(seed))
        while spent + once <= evaluations:
            candidate = next((move for move in moves if move not in seen), None)
            if candidate is None:
                break
            seen.add(candidate)
            tried += 1
            reached = quality(candidate)
            if reached > after:
                best, after = candidate, reached
                moves = _moves(steps, best, np.random.default_rng([seed, tried]))
    return Refinement(best, before, after, spent, tried)


def _moves(steps: int, refreshes: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Yield the refreshes with one of them, never step 0, moved to a free neighbouring step; in a random order."""
    taken = set(refreshes)
    pairs = [(old, old + way) for old in refreshes[1:] for way in (-1, 1)]
    free = [(old, new) for old, new in pairs if 0 < new < steps and new not in taken]
    for index in rng.permutation(len(free)):
        old, new = free[int(index)]
        yield tuple(sorted((taken - {old}) | {new}))
