"""This library's settings: plans from all or little of a profile, rules without one, and methods as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from cases import Case, sampled, uncached
from entry import Entry, Run

from cachepolicies import CachedDenoiser, Profile, Substitute
from cachepolicies.planning import best_plan, plan
from cachepolicies.policies import Schedule
from cachepolicies.profiles.subset import of_samples

BUDGETS = (10, 13, 17, 22, 31)
CORRECTED = {"vp": "linear:correct=0.5", "flow": "linear:correct=0.8", "edm": "linear:correct=0.8"}
"""The line without a profile, by the family of the noise schedule.

Chosen on the models: on the variance-preserving one, where an error grows fastest between two evaluations, 0.5 is level
with 0.8 under DDIM and better by up to 7 dB under the multistep solvers.
"""

ONE_RUN_ALONG = {family: f"{spec},time=path" for family, spec in CORRECTED.items()}
"""The same along the path of a single run."""

FULL, ONE_RUN, FEWER = "planned, full profile", "planned, one uncached run", "fewer steps"
EVEN, BY_SEA = "no profile: uniform, corrected line", "no profile: seacache, corrected line"


def entries() -> list[Entry]:
    """Return this library's settings at the budgets, and those without a profile."""
    found = [_fewer_steps(budget) for budget in BUDGETS]
    found += [_planned_fully(b) for b in BUDGETS]
    found += [_planned_from_one_run(b) for b in BUDGETS]
    found += [_free(EVEN, f"uniform:evaluations={b}") for b in BUDGETS]
    for threshold in (0.1, 0.25, 0.5, 1.0, 2.0):
        for most in (2, 4, 8):
            found.append(_free(BY_SEA, f"seacache:threshold={threshold},max_reuse={most}"))
    return found


def published() -> list[Entry]:
    """Return the methods as their authors run them, by their thresholds, with what they were published to hold."""
    found = []
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.4):
        # SenCache (arXiv 2602.24208): a strict tolerance for the first fifth, at most 3 reuses in a row
        spec = f"sencache:epsilon={threshold},max_reuse=3"
        found.append(_rule("SenCache as published", spec, "hold", profiled=True))
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.4):
        found.append(_rule("EasyCache as published", f"easycache:threshold={threshold}", "residual"))
    return found


def in_blocks() -> list[Entry]:
    """Return the published methods that cut at a stack of blocks."""
    found = []
    for threshold in (0.1, 0.25, 0.5, 1.0, 2.0):
        found.append(_rule("SeaCache as published", f"seacache:threshold={threshold}", "linear", site="blocks"))
    for threshold in (0.05, 0.1, 0.2, 0.4, 0.8):
        found.append(
            _rule(
                "TeaCache as published",
                f"teacache:threshold={threshold},signal=modulated_input",
                "hold",
                profiled=True,
                site="blocks",
            )
        )
    for threshold in (0.03, 0.06, 0.12, 0.24, 0.5):
        for most in (2, 4):
            found.append(
                _rule(
                    "MagCache as published",
                    f"magcache:threshold={threshold},max_reuse={most}",
                    "hold",
                    profiled=True,
                    site="blocks",
                )
            )
    return found


def one_uncached_run(profile: Profile) -> Profile:
    """Return what one uncached run tells: distances between outputs and latents, no weights."""
    return attrs.evolve(of_samples(profile, [0]), curves={})


def _fewer_steps(steps: int) -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        return Run(uncached(case.workload, seeds, steps), steps / case.workload.num_steps)

    return Entry(FEWER, str(steps), run)


def _planned_fully(budget: int) -> Entry:
    """Return the plan that the trials in the profile expect most of: corrected, by half, or the line alone."""

    def run(case: Case, seeds: Sequence[int]) -> Run:
        made = best_plan(case.profile, budget, scheduler=case.workload.scheduler)
        return cached_by(case, seeds, Schedule(plan=made), made.substitute, case.profile, "output")

    return Entry(FULL, str(budget), run)


def _planned_from_one_run(budget: int) -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        known = one_uncached_run(case.profile)
        substitute = ONE_RUN_ALONG[case.workload.scheduler.family]
        made = plan(known, budget, substitute=substitute, weights="uniform", scheduler=case.workload.scheduler)
        return cached_by(case, seeds, Schedule(plan=made), substitute, known, "output")

    return Entry(ONE_RUN, str(budget), run)


def _free(method: str, policy: str) -> Entry:
    """Return a rule that needs no profile, with the corrected line."""

    def run(case: Case, seeds: Sequence[int]) -> Run:
        return cached_by(case, seeds, policy, CORRECTED[case.workload.scheduler.family], None, "output")

    return Entry(method, policy, run)


def _rule(method: str, policy: str, substitute: str, *, profiled: bool = False, site: str = "output") -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        return cached_by(case, seeds, policy, substitute, case.profile if profiled else None, site)

    return Entry(method, policy, run)


def cached_by(
    case: Case,
    seeds: Sequence[int],
    policy: Any,
    substitute: str | Substitute,
    profile: Profile | None,
    site: str | None,
) -> Run:
    """Return what a policy of this library gives; without a site it is cut where the policy says."""
    workload = case.workload
    cached = CachedDenoiser(
        workload.denoiser, policy, profile=profile, substitute=substitute, scheduler=workload.scheduler, site=site
    )
    pictures = sampled(workload, seeds, cached)
    work = cached.trace.work
    if work is None:
        raise RuntimeError(f"{method_of(policy)} at {site}: the trace does not know what a reuse skips")
    return Run(pictures, work)


def method_of(policy: Any) -> str:
    """Return a policy's name, for messages."""
    return policy if isinstance(policy, str) else str(policy.name)
