"""What serves a run where nobody says how: the best that a profile allows, else the best rule without one."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve, frozen

from cachepolicies.assembly.spacing import is_multistep, spaced_steps
from cachepolicies.base.budget import Budget
from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.timesteps import part_of, same_timesteps
from cachepolicies.contracts.adapter import Clock
from cachepolicies.contracts.policy import PolicySettings
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.learning.profile import LEARNED
from cachepolicies.planning.best import best_plan
from cachepolicies.planning.plan_record import Plan
from cachepolicies.planning.planner import plan
from cachepolicies.planning.weights import WeightKind
from cachepolicies.policies.never import Never
from cachepolicies.policies.schedule import Schedule
from cachepolicies.policies.sencache import SenCache
from cachepolicies.policies.uniform import Uniform
from cachepolicies.profiles.schema import Profile, SchedulerInfo
from cachepolicies.schedulers.impulse import impulse_response
from cachepolicies.substitutes import steps_by_differences
from cachepolicies.tolerances.optimal import Optimal

_SHARE = {"vp": 0.5}
"""How much of a stand-in's error is corrected by default, by the family of the noise schedule; else 0.8.

Chosen on the reference models, not their twins: on the variance-preserving one, where an error grows fastest between
two evaluations, a half is level with 0.8 under DDIM and better by up to 7 dB under multistep solvers (docs: Beside
other caches).
"""

_MOST_CORRECTED = 0.8


@frozen
class Recipe:
    """Policy and substitute for a run, and the sentence that says where they are from.

    Attributes:
        policy: as settings.
        substitute: name, spec or object.
        sentence: for the trace.
    """

    policy: PolicySettings
    substitute: str | Substitute
    sentence: str


def serves(profile: Profile, timesteps: Sequence[float]) -> bool:
    """Return whether a profile was measured on these timesteps, or on a part of them that follow each other.

    Its errors are then those of the run; a pipeline with two denoisers calls each in a part of the run.
    """
    return bool(profile.timesteps) and part_of(profile.timesteps, timesteps) is not None


def corrected_line(
    scheduler: Scheduler | None, timesteps: Sequence[float] | None, site: ResolvedSite, *, along_path: bool
) -> str:
    """Return the line through the last two outputs, corrected at the next evaluation where that is possible.

    Args:
        scheduler: in use; a correction is by what it makes of an error.
        timesteps: of the run, which have to be the scheduler's own for that.
        site: a correction replaces an evaluation, which only the output allows.
        along_path: extrapolate along the path of the output on the runs of the profile.
    """
    settings = ["time=path"] if along_path else []
    if _corrects(scheduler, timesteps, site):
        assert scheduler is not None
        settings.append(f"correct={_SHARE.get(scheduler.family, _MOST_CORRECTED):g}")
        if timesteps is not None and not _visits(scheduler, timesteps):
            settings.append("steps=euler")
    return f"linear:{','.join(settings)}" if settings else "linear"


def planned(
    profile: Profile,
    budget: Budget,
    timesteps: tuple[float, ...],
    scheduler: Scheduler | None,
    site: ResolvedSite,
    substitute: str | Substitute | None = None,
) -> Recipe:
    """Return the best plan for a run on the timesteps of a profile.

    Raises:
        NeedsError: the profile lacks what planning needs, or a target what its trials would say.
        SettingsError: the budget does not fit the run.
    """
    start = part_of(profile.timesteps, timesteps)
    assert start is not None
    of_part = budget if len(timesteps) == len(profile.timesteps) else _in_proportion(budget, profile, timesteps)
    if substitute is None and not _tried_on(profile, scheduler, site):
        substitute = corrected_line(scheduler, timesteps, site, along_path=True)
    made = _plan(profile, of_part, scheduler, site, substitute)
    how = "learned from your own runs" if profile.name.startswith(LEARNED) else f"profile {profile.name!r}"
    expected = made.expected
    hope = ""
    if expected is not None and expected.psnr is not None and made.evaluations < len(timesteps):
        hope = f"; {expected.psnr.mean:.0f} dB expected"
    policy = Schedule(plan=made)
    if len(timesteps) != len(profile.timesteps):
        policy = _shifted(made, start, len(timesteps))
    return Recipe(
        policy,
        made.substitute,
        f"planned, {how}: {made.evaluations} of {len(made.timesteps)} steps are evaluated, {made.substitute} stands in"
        + hope,
    )


def _in_proportion(budget: Budget, profile: Profile, timesteps: Sequence[float]) -> Budget:
    """Return the budget of a part of a run: of a number of evaluations its share."""
    if budget.evaluations is None:
        return budget
    count = round(budget.evaluations * len(profile.timesteps) / len(timesteps))
    return evolve(budget, evaluations=max(1, count))


def _shifted(made: Plan, start: int, num_steps: int) -> Schedule:
    """Return the steps of a plan for a part of a run, counted in the whole; steps outside of it are evaluated."""
    inside = range(start, start + len(made.timesteps))
    outside = (k for k in range(num_steps) if k not in inside)
    return Schedule(refreshes=sorted({0, *outside, *(start + k for k in made.refreshes)}), num_steps=num_steps)


def adaptive(
    profile: Profile,
    budget: Budget,
    timesteps: tuple[float, ...] | None,
    scheduler: Scheduler | None,
    site: ResolvedSite,
    rule: SenCache | None = None,
    substitute: str | Substitute | None = None,
) -> Recipe:
    """Return SenCache's rule with the tolerance eps(t) that is solved for a budget, on any timesteps.

    Args:
        profile: with the curves that its score is made from.
        budget: of the run.
        timesteps: of the run; those of the profile where they are not known.
        scheduler: in use.
        site: where the evaluation is cut.
        rule: further settings of the rule.
        substitute: instead of the best.

    Raises:
        NeedsError: the profile lacks the curves and tables for it.
        SettingsError: the budget does not fit the run.
    """
    steps = len(profile.timesteps if timesteps is None else timesteps)
    if substitute is None:
        path = "change" in profile.tables
        substitute = corrected_line(scheduler, timesteps, site, along_path=path) if path else "hold"
    if budget.target is not None:
        if timesteps is None or not serves(profile, timesteps):
            raise NeedsError(
                f"target={budget.given!r} needs a plan with trials, and profile {profile.name!r} was measured on other "
                "timesteps than the run's; give a budget, or calibrate with these steps"
            )
        made = _plan(profile, budget, scheduler, site)
        count: float = made.evaluations
    else:
        count = budget.of_run(steps, skipped_by(site))
    if count >= steps:
        return Recipe(Never(), substitute, f"all {steps} steps are evaluated, as the budget allows")
    tolerance = Optimal(nfe=float(count), weights="best")
    return Recipe(
        evolve(rule or SenCache(), epsilon=tolerance),
        substitute,
        f"SenCache, profile {profile.name!r}: eps(t) solved for {count:g} of {steps} steps, {substitute} stands in",
    )


def without_profile(
    budget: Budget,
    timesteps: tuple[float, ...] | None,
    scheduler: Scheduler | None,
    site: ResolvedSite,
    substitute: str | Substitute | None = None,
    clock: Clock = "timestep",
) -> Recipe:
    """Return the rule that needs nothing measured: evenly spaced evaluations, and the corrected line between them.

    A multistep sampler needs them where its own steps are long; see `spaced_steps`.

    Raises:
        NeedsError: a quality is asked for, which nothing predicts without a profile.
        SettingsError: the budget does not fit the run.
    """
    if budget.target is not None:
        raise NeedsError(
            f"target={budget.given!r} needs a profile with trials, and there is none; give a budget, or calibrate first"
        )
    if timesteps is None:
        return Recipe(
            Never(),
            "hold",
            "no profile, and the run was not declared: everything is evaluated; declare it, "
            "`with denoiser.run(timesteps=...)`, or let runs be learned from (learn=True)",
        )
    count = budget.of_run(len(timesteps), skipped_by(site))
    if substitute is None:
        substitute = corrected_line(scheduler, timesteps, site, along_path=False)
    policy: PolicySettings = Uniform(evaluations=count)
    how = "evenly spaced"
    if scheduler is not None and is_multistep(scheduler):
        policy = Schedule(refreshes=spaced_steps(timesteps, count, scheduler, clock), num_steps=len(timesteps))
        how = "spaced for a multistep sampler"
    return Recipe(
        policy,
        substitute,
        f"no profile: {count} of {len(timesteps)} steps are evaluated, {how}, {substitute} stands in",
    )


def skipped_by(site: ResolvedSite) -> float:
    """Return the part of an evaluation's work that a reuse of all places of a site saves; 1 where it is not known."""
    total = sum(site.shares.values())
    return total if 0.0 < total <= 1.0 else 1.0


def _plan(
    profile: Profile,
    budget: Budget,
    scheduler: Scheduler | None,
    site: ResolvedSite,
    substitute: str | Substitute | None = None,
) -> Plan:
    """Return the plan for the timesteps of a profile; with no substitute, the best of those that were tried."""
    count = len(profile.timesteps)
    known = scheduler if scheduler is not None and _visits(scheduler, profile.timesteps) else None
    if substitute is not None:
        weights = _weights_of(profile)
        if budget.target is not None:
            return plan(profile, target=budget.target, substitute=substitute, weights=weights, scheduler=known)
        wanted = budget.of_run(count, skipped_by(site))
        return plan(profile, wanted, substitute=substitute, weights=weights, scheduler=known)
    if not _tried_on(profile, scheduler, site):
        raise NeedsError(
            f"target={budget.given!r} needs trials of plans with this scheduler, and profile {profile.name!r} has "
            "none; give a budget, or run `cachepolicies trials`"
        )
    if budget.target is not None:
        return best_plan(profile, target=budget.target, scheduler=known)
    return best_plan(profile, budget.of_run(count, skipped_by(site)), scheduler=known)


def _tried_on(profile: Profile, scheduler: Scheduler | None, site: ResolvedSite) -> bool:
    if not profile.trials or not site.replaces_evaluations:
        return False
    return scheduler is None or profile.scheduler == SchedulerInfo.of(scheduler)


def _weights_of(profile: Profile) -> WeightKind:
    return "geometric" if "weight" in profile.curves else "uniform"


def _corrects(scheduler: Scheduler | None, timesteps: Sequence[float] | None, site: ResolvedSite) -> bool:
    if scheduler is None or timesteps is None or not site.replaces_evaluations or scheduler.evaluations_per_step != 1:
        return False
    if steps_by_differences(scheduler):
        return True
    if not _visits(scheduler, timesteps):
        return False
    try:
        impulse_response(scheduler, len(timesteps))
    except SettingsError:  # clipped or thresholded samples: what an error grows to depends on its size
        return False
    return True


def _visits(scheduler: Scheduler, timesteps: Sequence[float]) -> bool:
    """Return whether a run of a scheduler has these timesteps; not where a pipeline shifts them for every picture."""
    return same_timesteps(scheduler.timesteps(len(timesteps)), timesteps)
