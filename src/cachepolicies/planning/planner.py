"""`plan`: from a profile to the best steps to refresh, with what was assumed and the tolerance that repeats them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import attrs
import numpy as np

from cachepolicies.base.budget import Budget, as_budget
from cachepolicies.base.errors import NeedsError, PolicyError, ProfileError, SettingsError, nearest_match_hint
from cachepolicies.base.provenance import utc_now, versions_of
from cachepolicies.base.settings import plain, shown
from cachepolicies.base.timesteps import same_timesteps
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.substitute import FILLED_IN, Substitute
from cachepolicies.planning.error_table import Floats
from cachepolicies.planning.errors import as_extrapolation, displacement_of, measured_errors, predicted_errors
from cachepolicies.planning.expectation import expectations
from cachepolicies.planning.objectives import Objective, as_objective
from cachepolicies.planning.plan_record import Plan, PlanPoint, PlanSource
from cachepolicies.planning.problem import PlanningProblem, Solution
from cachepolicies.planning.shortest_path import trade_off
from cachepolicies.planning.stretches import signed_sums, sums_along
from cachepolicies.planning.targets import as_aim, good_enough, trials_of
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.planning.tolerance_fit import InfeasibleToleranceError, Shape, fit
from cachepolicies.planning.weights import WeightKind, step_weights
from cachepolicies.profiles.schema import Profile, SchedulerInfo
from cachepolicies.substitutes.resolve import as_substitute, substitute_on

ErrorKind: TypeAlias = Literal["measured", "predicted"]
"""Where the errors of reuses are from: the calibration runs, or the score."""


def plan(
    profile: Profile | str | Path,
    budget: int | float | str | Budget | None = None,
    *,
    target: float | str | None = None,
    objective: str | Objective = "signed",
    errors: ErrorKind = "measured",
    substitute: str | Substitute = "hold",
    max_reuse: int | None = None,
    always: Iterable[int] = (),
    weights: WeightKind = "geometric",
    num_steps: int | None = None,
    scheduler: object = None,
    shape: Shape = "piecewise",
) -> Plan:
    """Choose the steps of a run to refresh, so that the error of the sample is as small as a budget allows.

    With refreshes R, step k outside R has the error e_k of the substitute, which the sampler turns into ``w_k e_k`` in
    the sample. What is minimised over R with ``|R| <= budget`` is by default the root of the sum of squares, over the
    stretches between refreshes, of the size of the vector sum of their weighted errors; or the sum of all sizes, the
    triangle inequality's bound of the whole error; or the largest; or the largest first and the sum among the plans
    that have it, which is close to LeMiCa (arXiv 2511.00090). The optimum is exact.

    Args:
        profile: what calibration measured, or where to load it from.
        budget: most refreshes, from 1 to N; or a fraction of the N (0.4), or ``"2.5x"``. Give this or ``target``.
        target: instead, take the smallest budget that is good enough: ``"45dB"``, the mean PSNR of new samples, or
            ``"0.01rms"``, the RMS of their latents' error; nine new samples in ten are at most 3 dB below. These need
            `cachepolicies.profiles.Trials` of such plans in the profile. A number is compared with the objective's own
            prediction, which is often several times too large.
        objective: ``"signed"``, ``"sum"``, ``"max"``, ``"lexicographic"``, or an object that follows
            `cachepolicies.planning.Objective`. Where errors are predicted, their directions are not known, and
            ``"signed"`` takes all errors of a stretch to point the same way.
        errors: ``"measured"`` on the calibration runs for this substitute (table ``change``), for the calibrated
            timesteps only; or ``"predicted"`` by the substitute's score from the mean displacement, for any.
        substitute: what stands in for a skipped evaluation: a name, a spec, or an object.
        max_reuse: most reuses in a row, None without a limit.
        always: steps that are always refreshed, negative ones from the end. Step 0 always is.
        weights: ``"geometric"``, ``"measured"``, ``"bound"`` or ``"uniform"``; see
            `cachepolicies.planning.step_weights`.
        num_steps: N, the profile's own if ``None``.
        scheduler: of the run to plan, whatever `as_scheduler` takes; the profile's own if ``None``.
        shape: of the tolerance over t: ``"piecewise"`` linear, or ``"monotone"`` along the run.

    Returns:
        The plan. Its tolerance is `cachepolicies.planning.fit`'s with the substitute's score; where
        there is none, it says why.

    Raises:
        NeedsError: the profile lacks a table, a curve or the trials, or its scheduler is not known; says what to do.
        ProfileError: the profile was calibrated for another kind of scheduler.
        PolicyError: the substitute breaks its contract.
        SettingsError: an unknown word; a budget below 1 or above N; a budget that ``max_reuse`` or ``always`` make
            impossible (names the two); a sampler with two evaluations a step; other timesteps with measured errors; a
            table that would be too large.
    """
    from cachepolicies.profiles.load import load_profile

    loaded = profile if isinstance(profile, Profile) else load_profile(profile)
    made = as_objective(objective)
    _check_word("errors", errors, get_args(ErrorKind))
    _check_word("weights", weights, get_args(WeightKind))
    aim = as_aim(budget, target)
    _check_word("shape", shape, get_args(Shape))
    if not loaded.timesteps:
        raise NeedsError(f"profile {loaded.name!r} has no timesteps to plan for; calibrate the model yourself")
    sampler = _run_scheduler(loaded, scheduler)
    timesteps = _run_timesteps(loaded, sampler, num_steps, given=scheduler is not None)
    if budget is not None:
        budget = _evaluations(budget, len(timesteps))
    named = as_substitute(substitute)
    used = substitute_on(named, sampler, loaded)
    spec = substitute if isinstance(substitute, str) else _spec_of(named)
    limit = plain(max_reuse)
    weighed = step_weights(loaded, weights, timesteps, sampler)
    asked = _problem_without_errors(weighed, limit, always)
    if budget is not None:
        asked.check_budget(budget)  # before the errors, which take long
    reuses = _errors_of_reuses(loaded, errors, used, timesteps, limit)
    if not made.signed:
        sums = None
    elif errors == "measured":
        sums = signed_sums(loaded, as_extrapolation(used), weighed, limit)
    else:
        sums = sums_along(reuses, weighed.tolist())
    problem = PlanningProblem(weighed, reuses, limit, asked.always, sums)
    curve = trade_off(problem, made)
    tried = None
    own = None if sampler is None else SchedulerInfo.of(sampler)
    if errors == "measured" and limit is None and asked.fixed == (0,) and loaded.scheduler == own:
        tried = trials_of(loaded, named, made.name, weights)
    expected = [None] * len(curve) if tried is None else expectations(tried, curve)
    if budget is not None:
        best = next(s for s in curve if s.budget == budget)
    else:
        assert aim is not None
        best = good_enough(loaded, spec, aim, curve, expected)
    tolerance, reason = _tolerance_or_reason(loaded, used, timesteps, best, limit, shape)
    return Plan(
        source=_source_of(loaded, sampler),
        timesteps=timesteps,
        substitute=spec,
        objective=made.name,
        errors=errors,
        weights_kind=weights,
        method="shortest-path",
        max_reuse=limit,
        always=problem.fixed,
        budget=best.budget,
        target=None if aim is None else aim.value,
        target_unit="objective" if aim is None else aim.unit,
        refreshes=best.refreshes,
        predicted=best.predicted,
        weights=problem.weights.tolist(),
        step_errors=problem.errors_of(best.refreshes).tolist(),
        curve=tuple(PlanPoint(s.budget, s.predicted, s.refreshes, e) for s, e in zip(curve, expected, strict=True)),
        tolerance=tolerance,
        no_tolerance=reason,
        notes=_carried_over(loaded, sampler, weights),
        versions=versions_of("cachepolicies", "numpy", "scipy"),
        created=utc_now(),
    )


def _check_word(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingsError(f"unknown {what} {shown(value)}: {nearest_match_hint(str(value), known)}")


def _evaluations(budget: object, num_steps: int) -> int:
    """Return a budget as a number of refreshes; what is no whole number in range is refused later, by its own check."""
    plain_number = plain(budget)
    if isinstance(plain_number, int):
        return plain_number
    asked = as_budget(budget)
    assert asked is not None
    return asked.of_run(num_steps)


def _run_scheduler(profile: Profile, given: object) -> Scheduler | None:
    """Return the scheduler of the run, checked against the profile and for two-stage steps.

    ``None`` for a run that was recorded in a loop whose scheduler nobody named.
    """
    from cachepolicies.profiles.match import check_profile
    from cachepolicies.schedulers.resolve import as_scheduler, scheduler_of

    if given is not None:
        found = as_scheduler(given)
        check_profile(profile, scheduler=found)
    else:
        info = profile.scheduler
        if info is None and profile.trajectory == "recorded":
            return None
        if info is None:
            raise NeedsError(f"profile {profile.name!r} does not say its scheduler; give scheduler=")
        rebuilt = scheduler_of(info)
        if rebuilt is None and profile.trajectory == "recorded":
            return None
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


def _run_timesteps(
    profile: Profile, scheduler: Scheduler | None, num_steps: int | None, *, given: bool
) -> tuple[float, ...]:
    """Return t of the steps to plan."""
    steps = plain(num_steps)
    if not given:
        if steps is None or steps == profile.num_steps:
            return profile.timesteps
        if scheduler is None:
            raise NeedsError(
                f"profile {profile.name!r} was recorded with a scheduler that nobody named, so the timesteps of "
                f"{steps} steps are not known; give scheduler="
            )
        if not same_timesteps(scheduler.timesteps(profile.num_steps), profile.timesteps):
            # a diffusers scheduler whose shift was set after it was made does not record how
            raise NeedsError(
                f"the scheduler that profile {profile.name!r} records does not have the profile's timesteps, so those "
                f"of {steps} steps are not known; give scheduler="
            )
    assert scheduler is not None  # it was given
    return scheduler.timesteps(profile.num_steps if steps is None else steps)


def _spec_of(substitute: Substitute) -> str:
    """Return the spec of a substitute object: its name and what differs from the defaults, set-up's part left out."""
    from cachepolicies.base.specs import format_spec

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


def _problem_without_errors(weights: Floats, max_reuse: Any, always: Iterable[int]) -> PlanningProblem:
    """Return what was asked as a problem without errors, so that it is checked first."""
    checked = PlanningProblem(np.ones(1), np.zeros((1, 0)), max_reuse)
    longest = len(weights) - 1 if checked.max_reuse is None else min(checked.max_reuse, len(weights) - 1)
    return PlanningProblem(weights, np.zeros((len(weights), longest)), max_reuse, always)


def _errors_of_reuses(
    profile: Profile, kind: ErrorKind, substitute: Substitute, timesteps: tuple[float, ...], max_reuse: int | None
) -> Floats:
    if kind == "predicted":
        from cachepolicies.scores import score_of

        score = score_of("substitute", profile, substitute)
        return predicted_errors(score, timesteps, displacement_of(profile, timesteps), max_reuse)
    if not same_timesteps(timesteps, profile.timesteps):
        raise SettingsError(
            f"errors='measured' are known for the {profile.num_steps} timesteps of profile {profile.name!r} only, and "
            f"the run has {len(timesteps)} others; use errors='predicted', or calibrate with these steps"
        )
    return measured_errors(profile, as_extrapolation(substitute), max_reuse)


def _tolerance_or_reason(
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


def _source_of(profile: Profile, scheduler: Scheduler | None) -> PlanSource:
    return PlanSource(
        profile=profile.name,
        model_class=profile.model.class_name,
        scheduler=None if scheduler is None else SchedulerInfo.of(scheduler),
        guidance=profile.guidance,
        num_steps=profile.num_steps,
        samples=profile.samples,
        versions=profile.versions,
        created=profile.created,
    )


def _carried_over(profile: Profile, scheduler: Scheduler | None, weights: str) -> str:
    """Return what was measured under another scheduler than the one planned for, as a note."""
    info = profile.scheduler
    if info is None or scheduler is None or weights not in ("geometric", "measured"):
        return ""
    if info == SchedulerInfo.of(scheduler):
        return ""
    return (
        f"the weights were measured with the scheduler {info.name}, settings {json.dumps(dict(info.config))}, not with "
        "the one planned for"
    )
