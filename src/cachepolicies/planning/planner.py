"""`plan`: from a profile to the best steps to refresh, with what was assumed and the tolerance that repeats them."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import attrs
import numpy as np

from cachepolicies._errors import NeedsError, PolicyError, ProfileError, SettingsError, nearest_match_hint
from cachepolicies._settings import plain, shown
from cachepolicies._substitute import FILLED_IN, InSchedulerTime, Substitute
from cachepolicies.planning import milp, shortest_path
from cachepolicies.planning._plan import Plan, PlanPoint, PlanSource
from cachepolicies.planning.errors import as_extrapolation, displacement_of, measured_errors, predicted_errors
from cachepolicies.planning.objectives import Objective, as_objective
from cachepolicies.planning.problem import Floats, PlanningProblem, Solution
from cachepolicies.planning.tolerance_curve import InfeasibleToleranceError, Shape, ToleranceCurve, fit
from cachepolicies.planning.weights import WeightKind, step_weights
from cachepolicies.profiles.schema import Profile, SchedulerInfo
from cachepolicies.schedulers.base import Scheduler

ErrorKind: TypeAlias = Literal["measured", "predicted"]
"""Where the errors of reuses are from: the calibration runs, or the score."""

Method: TypeAlias = Literal["shortest-path", "milp"]
"""How the best refreshes are found."""

_SAME_T = 1e-5
"""Two t closer than this fraction of the largest |t| are the same timestep, rounded differently."""


def plan(
    profile: Profile | str | Path,
    budget: int | None = None,
    *,
    target: float | None = None,
    objective: str | Objective = "sum",
    errors: ErrorKind = "measured",
    substitute: str | Substitute = "hold",
    max_reuse: int | None = None,
    always: Iterable[int] = (),
    weights: WeightKind = "measured",
    method: Method = "shortest-path",
    num_steps: int | None = None,
    scheduler: object = None,
    shape: Shape = "piecewise",
) -> Plan:
    """Choose the steps of a run to refresh, so that the error of the sample is as small as a budget allows.

    With refreshes R, step k outside R has the error e_k of the substitute, which the sampler turns into ``w_k e_k`` in
    the sample. What is minimised over R with ``|R| <= budget`` is their sum, their maximum, or the maximum first and
    the sum among the plans that have it. With ``"sum"`` that is the triangle inequality's bound of the whole error;
    the lexicographic order is close to that of LeMiCa (arXiv 2511.00090). The optimum is exact.

    Args:
        profile: what calibration measured, or where to load it from.
        budget: most refreshes, from 1 to N. Give this or ``target``.
        target: instead, take the smallest budget whose predicted objective is at most this.
        objective: ``"sum"``, ``"max"``, ``"lexicographic"``, or an object that follows
            `cachepolicies.planning.Objective`.
        errors: ``"measured"`` on the calibration runs for this substitute (table ``change``), for the calibrated
            timesteps only; or ``"predicted"`` by the substitute's score from the mean displacement, for any.
        substitute: what stands in for a skipped evaluation: a name, a spec, or an object.
        max_reuse: most reuses in a row, None without a limit.
        always: steps that are always refreshed, negative ones from the end. Step 0 always is.
        weights: ``"measured"``, ``"bound"`` or ``"uniform"``; see `cachepolicies.planning.step_weights`.
        method: ``"shortest-path"``, for all budgets at once; or ``"milp"``, a check of it by another method, which
            solves the budgets that it needs one by one, so that the plan's trade-off curve has only these.
        num_steps: N, the profile's own if ``None``.
        scheduler: of the run to plan, whatever `as_scheduler` takes; the profile's own if ``None``.

        shape: of the tolerance over t: ``"piecewise"`` linear, or ``"monotone"`` along the run.

    Returns:
        The plan. Its tolerance is `cachepolicies.planning.tolerance_curve.fit`'s with the substitute's score; where
        there is none, it says why.

    Raises:
        NeedsError: the profile lacks a table or a curve, or its scheduler is not known; says what to do.
        ProfileError: the profile was calibrated for another kind of scheduler.
        PolicyError: the substitute breaks its contract.
        SettingsError: an unknown word; a budget below 1 or above N; a budget that ``max_reuse`` or ``always`` make
            impossible (names the two); a sampler with two evaluations a step; other timesteps with measured errors; a
            table that would be too large.
    """
    from cachepolicies._assembly import make_substitute
    from cachepolicies.profiles.load import load_profile

    loaded = profile if isinstance(profile, Profile) else load_profile(profile)
    made = as_objective(objective)
    _check_word("errors", errors, get_args(ErrorKind))
    _check_word("method", method, get_args(Method))
    _check_word("weights", weights, get_args(WeightKind))
    _check_aim(budget, target)
    _check_word("shape", shape, get_args(Shape))
    if not loaded.timesteps:
        raise NeedsError(f"profile {loaded.name!r} has no timesteps to plan for; calibrate the model yourself")
    sampler = _scheduler(loaded, scheduler)
    timesteps = _timesteps(loaded, sampler, num_steps, given=scheduler is not None)
    named = make_substitute(substitute)
    used = named.on(sampler, loaded) if isinstance(named, InSchedulerTime) else named
    if not isinstance(used, Substitute):
        raise PolicyError(f"substitute {named.name!r}: on(scheduler) returned {shown(used)}, not a substitute")
    spec = substitute if isinstance(substitute, str) else _spec_of(named)
    limit = plain(max_reuse)
    weighed = step_weights(loaded, weights, timesteps, sampler)
    asked = _asked(weighed, limit, always)
    if budget is not None:
        asked.check_budget(budget)  # before the errors, which take long
    problem = PlanningProblem(weighed, _errors(loaded, errors, used, timesteps, limit), limit, asked.always)
    best, curve = _solve(problem, made, method, budget, target)
    tolerance, reason = _tolerance(loaded, used, timesteps, best, limit, shape)
    return Plan(
        source=_source(loaded, sampler),
        timesteps=timesteps,
        substitute=spec,
        objective=made.name,
        errors=errors,
        weights_kind=weights,
        method=method,
        max_reuse=limit,
        always=problem.fixed,
        budget=best.budget,
        target=None if target is None else float(target),
        refreshes=best.refreshes,
        predicted=best.predicted,
        weights=problem.weights.tolist(),
        step_errors=problem.errors_of(best.refreshes).tolist(),
        curve=tuple(PlanPoint(s.budget, s.predicted, s.refreshes) for s in curve),
        tolerance=tolerance,
        no_tolerance=reason,
        notes=_carried_over(loaded, sampler, weights),
        versions=_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _check_word(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingsError(f"unknown {what} {shown(value)}: {nearest_match_hint(str(value), known)}")


def _check_aim(budget: object, target: object) -> None:
    if (budget is None) == (target is None):
        raise SettingsError(f"give either budget or target, got budget={budget!r} and target={target!r}")
    if target is None:
        return
    if isinstance(target, bool) or not isinstance(target, Real) or not 0 <= float(target) < math.inf:
        raise SettingsError(f"target is {target!r}, expected a predicted error: a finite number >= 0")


def _scheduler(profile: Profile, given: object) -> Scheduler:
    """Return the scheduler of the run, checked against the profile and for two-stage steps."""
    from cachepolicies.profiles.match import check_profile
    from cachepolicies.schedulers.resolve import as_scheduler, scheduler_of

    if given is not None:
        found = as_scheduler(given)
        check_profile(profile, scheduler=found)
    else:
        info = profile.scheduler
        if info is None:
            raise NeedsError(f"profile {profile.name!r} does not say its scheduler; give scheduler=")
        rebuilt = scheduler_of(info)
        if rebuilt is None:
            raise NeedsError(
                f"the scheduler {info.name!r} of profile {profile.name!r} is not registered here; give scheduler="
            )
        found = rebuilt
    if found.evaluations_per_step != 1:
        raise SettingsError(
            f"scheduler {found.name!r} makes {found.evaluations_per_step} evaluations a step, and errors are "
            "calibrated at the first of them only; plan for a sampler that makes one, such as Euler or a multistep one"
        )
    return found


def _timesteps(profile: Profile, scheduler: Scheduler, num_steps: int | None, *, given: bool) -> tuple[float, ...]:
    """Return t of the steps to plan."""
    steps = plain(num_steps)
    if not given:
        if steps is None or steps == profile.num_steps:
            return profile.timesteps
        if not _same(scheduler.timesteps(profile.num_steps), profile.timesteps):
            # a diffusers scheduler whose shift was set after it was made does not record how
            raise NeedsError(
                f"the scheduler that profile {profile.name!r} records does not have the profile's timesteps, so those "
                f"of {steps} steps are not known; give scheduler="
            )
    return scheduler.timesteps(profile.num_steps if steps is None else steps)


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    slack = _SAME_T * max(abs(t) for t in other)
    return len(one) == len(other) and all(abs(a - b) <= slack for a, b in zip(one, other, strict=True))


def _spec_of(substitute: Substitute) -> str:
    """Return the spec of a substitute object: its name and what differs from the defaults, set-up's part left out."""
    from cachepolicies._spec import format_spec

    settings: dict[str, Any] = {}
    kind: Any = type(substitute)
    for attribute in attrs.fields(kind) if attrs.has(kind) else ():
        value = getattr(substitute, attribute.name)
        if attribute.init and value != attribute.default and attribute.metadata != FILLED_IN:
            settings[attribute.alias or attribute.name] = value
    try:
        return format_spec(substitute.name, settings)
    except SettingsError as error:
        raise SettingsError(
            f"a plan names its substitute by a spec, which {substitute!r} has none of ({error}); give it as text, "
            "such as 'linear:time=sigma'"
        ) from error


def _asked(weights: Floats, max_reuse: Any, always: Iterable[int]) -> PlanningProblem:
    """Return what was asked as a problem without errors, so that it is checked first."""
    checked = PlanningProblem(np.ones(1), np.zeros((1, 0)), max_reuse)
    longest = len(weights) - 1 if checked.max_reuse is None else min(checked.max_reuse, len(weights) - 1)
    return PlanningProblem(weights, np.zeros((len(weights), longest)), max_reuse, always)


def _errors(
    profile: Profile, kind: ErrorKind, substitute: Substitute, timesteps: tuple[float, ...], max_reuse: int | None
) -> Floats:
    if kind == "predicted":
        from cachepolicies.scores import score_of

        score = score_of("substitute", profile, substitute)
        return predicted_errors(score, timesteps, displacement_of(profile, timesteps), max_reuse)
    if not _same(timesteps, profile.timesteps):
        raise SettingsError(
            f"errors='measured' are known for the {profile.num_steps} timesteps of profile {profile.name!r} only, and "
            f"the run has {len(timesteps)} others; use errors='predicted', or calibrate with these steps"
        )
    return measured_errors(profile, as_extrapolation(substitute), max_reuse)


def _solve(
    problem: PlanningProblem, objective: Objective, method: Method, budget: int | None, target: float | None
) -> tuple[Solution, tuple[Solution, ...]]:
    """Return the solution that was asked for, and all that were found, by budget."""
    if method == "shortest-path":
        curve = shortest_path.trade_off(problem, objective)
        if budget is not None:
            return next(s for s in curve if s.budget == budget), curve
        # there always is one: with N refreshes nothing is reused, and the error is 0
        return next(s for s in curve if s.predicted <= float(target or 0.0)), curve
    if budget is not None:
        only = milp.solve(problem, budget, objective)
        return only, (only,)
    solved: dict[int, Solution] = {}
    low, high = problem.fewest, problem.num_steps
    while low <= high:
        middle = (low + high) // 2
        solved[middle] = milp.solve(problem, middle, objective)
        low, high = (low, middle - 1) if solved[middle].predicted <= float(target or 0.0) else (middle + 1, high)
    return solved[low], tuple(solved[count] for count in sorted(solved))


def _tolerance(
    profile: Profile,
    substitute: Substitute,
    timesteps: tuple[float, ...],
    best: Solution,
    max_reuse: int | None,
    shape: Shape,
) -> tuple[ToleranceCurve | None, str | None]:
    """Return the tolerance that repeats the plan, or why there is none."""
    from cachepolicies.scores import score_of

    try:
        score = score_of("substitute", profile, substitute)
        return fit(timesteps, best.refreshes, score, displacement_of(profile, timesteps), max_reuse, shape), None
    except (NeedsError, InfeasibleToleranceError, ProfileError, PolicyError) as error:
        return None, str(error)


def _source(profile: Profile, scheduler: Scheduler) -> PlanSource:
    return PlanSource(
        profile=profile.name,
        model_class=profile.model.class_name,
        scheduler=SchedulerInfo(name=scheduler.name, family=scheduler.family, config=scheduler.config),
        guidance=profile.guidance,
        num_steps=profile.num_steps,
        samples=profile.samples,
        versions=profile.versions,
        created=profile.created,
    )


def _carried_over(profile: Profile, scheduler: Scheduler, weights: str) -> str:
    """Return what was measured under another scheduler than the one planned for, as a note."""
    info = profile.scheduler
    if (
        info is None
        or weights != "measured"
        or (info.name, dict(info.config)) == (scheduler.name, _plain_config(scheduler))
    ):
        return ""
    return (
        f"the weights were measured with the scheduler {info.name}, settings {json.dumps(dict(info.config))}, not with "
        "the one planned for"
    )


def _plain_config(scheduler: Scheduler) -> dict[str, Any]:
    """Return a scheduler's settings as a profile records them."""
    found: dict[str, Any] = json.loads(json.dumps(dict(scheduler.config)))
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for distribution in ("cachepolicies", "numpy", "scipy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that is not installed has no metadata
            versions[distribution] = metadata.version(distribution)
    return versions
