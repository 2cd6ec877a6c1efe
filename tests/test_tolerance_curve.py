"""From a plan to a tolerance over t, and the schedule that reads it."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, Needs, Setup
from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.planning.io import save_plan
from cachepolicies.planning.plan_record import PlanError
from cachepolicies.planning.simulate import simulate, simulate_samples
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.planning.tolerance_fit import LARGEST_MARGIN, InfeasibleToleranceError, fit
from cachepolicies.policies import SenCache
from cachepolicies.profiles import load_profile
from cachepolicies.scores import score_of
from cachepolicies.substitutes.hold import Hold
from cachepolicies.substitutes.linear import Linear
from cachepolicies.substitutes.quadratic import Quadratic
from cachepolicies.substitutes.resolve import substitute_on
from cachepolicies.tolerances import as_tolerance
from cachepolicies.tolerances.planned import Planned
from denoisers import Counted, mixture
from made_plans import plan_of
from plain_loops import sampled
from steady_runs import Distance, steady


@st.composite
def planned(draw, least=2):
    """Timesteps, a refresh set, a monotone table of displacements and a limit that the plan keeps."""
    count = draw(st.integers(least, 24))
    gaps = draw(st.lists(st.floats(0.05, 3.0), min_size=count, max_size=count))
    position = np.cumsum(gaps)
    ts = tuple(1000.0 - np.cumsum(draw(st.lists(st.floats(1.0, 30.0), min_size=count, max_size=count))))
    table = np.abs(np.subtract.outer(position, position)) ** draw(st.sampled_from([1.0, 1.5]))
    plan = (0, *(k for k in range(1, count) if draw(st.booleans())))
    longest = max(b - a - 1 for a, b in pairwise((*plan, count)))
    limit = draw(st.sampled_from([None, longest, longest + 2]))
    return ts, plan, table, limit


# --- the curve itself


def test_a_curve_is_linear_between_its_points_and_constant_beyond():
    curve = ToleranceCurve((10.0, 6.0, 1.0), (1.0, 3.0, 0.5))
    assert [curve.at(t) for t in (99.0, 10.0, 6.0, 1.0, -5.0)] == [1.0, 1.0, 3.0, 0.5, 0.5]
    assert curve.at(8.0) == pytest.approx(2.0)
    assert curve.at(2.0) == pytest.approx(1.0)
    assert ToleranceCurve((5.0,), (0.2,)).at(7.0) == 0.2


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 10)), min_size=1, max_size=9, unique_by=lambda p: p[0]))
def test_a_curve_at_its_own_points_is_exact(points):
    points = sorted(points, reverse=True)
    curve = ToleranceCurve([t for t, _ in points], [value for _, value in points])
    assert [curve.at(t) for t, _ in points] == [value for _, value in points]
    low, high = min(curve.epsilon), max(curve.epsilon)
    for t in np.linspace(-10, 1010, 50):
        assert low * (1 - 1e-9) <= curve.at(t) <= high * (1 + 1e-9)


@pytest.mark.parametrize(
    ("t", "epsilon", "margin", "message"),
    [
        ((), (), None, "expected equally many, at least one"),
        ((2.0, 1.0), (1.0,), None, "2 values of t and 1 of epsilon"),
        ((1.0, 2.0), (1.0, 1.0), None, "strictly decreasing"),
        ((2.0, math.nan), (1.0, 1.0), None, "finite"),
        ((2.0, 1.0), (1.0, -1.0), None, "finite and >= 0"),
        ((2.0, 1.0), (1.0, math.inf), None, "finite and >= 0"),
        ((2.0, 1.0), (1.0, 1.0), math.nan, "margin"),
    ],
)
def test_a_curve_that_is_none_is_refused(t, epsilon, margin, message):
    with pytest.raises(ProfileError, match=message):
        ToleranceCurve(t, epsilon, margin)


def test_a_curve_is_not_read_at_nan():
    with pytest.raises(InputError, match="nan"):
        ToleranceCurve((1.0,), (1.0,)).at(math.nan)


# --- fitting


@settings(max_examples=50)
@given(planned())
def test_a_fitted_curve_reproduces_the_plan_exactly(problem):
    ts, plan, table, limit = problem
    count = len(ts)
    forced_only = limit is not None and all(b - a - 1 == limit for a, b in pairwise(plan)) and len(plan) == count
    if forced_only:
        with pytest.raises(InfeasibleToleranceError, match="decides no step"):
            fit(ts, plan, Distance(), table, limit)
        return
    curve = fit(ts, plan, Distance(), table, limit)
    assert curve.t == ts
    assert simulate(Distance(), curve.epsilon, ts, table, limit) == plan
    assert simulate(Distance(), [curve.at(t) for t in ts], ts, table, limit) == plan
    # with a knot at every step each decision has a tolerance of its own, so the largest margin is there
    assert curve.margin is not None
    assert curve.margin == pytest.approx(0.5 * LARGEST_MARGIN) or curve.margin > 0.5 * LARGEST_MARGIN


@settings(max_examples=50)
@given(planned(), st.floats(-0.9, 0.9))
def test_the_margin_is_how_far_a_sample_may_be_off(problem, share):
    ts, plan, table, limit = problem
    try:
        curve = fit(ts, plan, Distance(), table, limit)
    except InfeasibleToleranceError:
        return
    assert simulate(Distance(), curve.epsilon, ts, math.exp(share * curve.margin) * table, limit) == plan


@settings(max_examples=50)
@given(planned(least=4), st.sampled_from(["rising", "falling", None]))
def test_monotone_curves_are_monotone_or_say_which_steps_clash(problem, direction):
    ts, plan, table, limit = problem
    try:
        curve = fit(ts, plan, Distance(), table, limit, "monotone", direction=direction)
    except InfeasibleToleranceError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert ("decides no step" in message) or ("clash" in message and clashes(plan, table, limit, direction))
        return
    assert simulate(Distance(), curve.epsilon, ts, table, limit) == plan
    steps = np.diff(np.log(curve.epsilon))
    rises, falls = (steps >= -1e-7).all(), (steps <= 1e-7).all()
    assert {"rising": rises, "falling": falls, None: rises or falls}[direction]


def clashes(plan, table, limit, direction):
    """Whether brute force finds, for every allowed direction, a reuse and a refresh that no monotone curve serves."""
    needs, below, newest = {}, {}, 0
    for k in range(1, len(table)):
        score = table[newest, k]
        if k not in plan:
            needs[k] = score
        else:
            if limit is None or k - newest <= limit:
                below[k] = score
            newest = k
    tight = 1 - 1e-5
    rising = any(i < k and needs[i] >= below[k] * tight for i in needs for k in below)
    falling = any(k < i and needs[i] >= below[k] * tight for i in needs for k in below)
    return {"rising": rising, "falling": falling, None: rising and falling}[direction]


def test_monotone_clash_names_the_two_steps():
    ts, table = steady(6)
    # rising: the reuse at step 3 (score 3) asks for more than the refresh at 5 (score 1) allows
    with pytest.raises(InfeasibleToleranceError, match=r"step 3 \(reuse: at least 3.*clashes with step 5 \(refresh"):
        fit(ts, (0, 4, 5), Distance(), table, None, "monotone", direction="rising")
    curve = fit(ts, (0, 4, 5), Distance(), table, None, "monotone")
    assert simulate(Distance(), curve.epsilon, ts, table) == (0, 4, 5)


def test_a_steady_plan_gives_a_straight_line_in_the_middle():
    ts, table = steady(20)
    curve = fit(ts, tuple(range(0, 20, 2)), Distance(), table, share=1.0)
    # between a score of 1 and one of 2, with the largest margin: sqrt(2), everywhere
    assert curve.epsilon[1:] == pytest.approx([math.sqrt(2)] * 19, rel=1e-6)
    assert curve.margin == pytest.approx(LARGEST_MARGIN)


def test_fewer_knots_give_a_smoother_curve_or_say_that_they_do_not_suffice():
    profile = load_profile("video-dit")
    assert profile.displacement is not None
    ts, table = profile.timesteps, profile.displacement.astype(np.float64).mean(axis=2)
    score, plan = score_of("bound", profile, Hold()), tuple(range(0, 50, 2))
    knots = [*np.linspace(ts[0], 200.0, 8), *np.linspace(180.0, ts[-1], 6)]
    curve = fit(ts, plan, score, table, knots=knots)
    assert simulate(score, curve.epsilon, ts, table) == plan
    bends = np.abs(np.diff(np.diff(np.log(curve.epsilon)) / np.diff(ts))) > 1e-9
    assert bends.sum() <= 2 * 12  # a knot inside the run lies between two steps
    with pytest.raises(InfeasibleToleranceError, match="with these knots: step"):
        fit(ts, (0, 1, 2, 3, 10, 11, 12, 20, 21, 30), score, table, knots=(ts[0], ts[-1]))


PLANS = {
    "every second": tuple(range(0, 50, 2)),
    "every third": tuple(range(0, 50, 3)),
    "dense early": (*range(14), *range(14, 50, 3)),
    "dense at both ends": (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 17, 20, 23, 27, 31, 35, 39, 43, 46, 48, 49),
}


@pytest.mark.parametrize("substitute", [Hold(), Linear(), Quadratic()], ids=["hold", "linear", "quadratic"])
@pytest.mark.parametrize("name", ["video-dit", "image-dit"])
def test_on_single_samples_the_mean_is_within_one_of_the_plan(name, substitute):
    profile = load_profile(name)
    assert profile.displacement is not None
    ts, table = profile.timesteps, profile.displacement.astype(np.float64)
    score = score_of("substitute", profile, substitute)
    for label, plan in PLANS.items():
        curve = fit(ts, plan, score, table.mean(axis=2))
        assert simulate(score, curve.epsilon, ts, table.mean(axis=2)) == plan
        runs = simulate_samples(score, curve.epsilon, ts, table)
        assert abs(np.mean([len(run) for run in runs]) - len(plan)) <= 1, (label, [len(run) for run in runs])


def test_degenerate_plans():
    ts, table = steady(6)
    everything = fit(ts, tuple(range(6)), Distance(), table)
    assert simulate(Distance(), everything.epsilon, ts, table) == tuple(range(6))
    nothing = fit(ts, (0,), Distance(), table)
    assert simulate(Distance(), nothing.epsilon, ts, table) == (0,)
    # forced refreshes constrain nothing: the reuses alone do
    forced = fit(ts, (0, 3), Distance(), table, max_reuse=2)
    assert simulate(Distance(), forced.epsilon, ts, table, 2) == (0, 3)
    still = np.zeros((6, 6))
    with pytest.raises(InfeasibleToleranceError, match=r"refreshes at step 2 .*predicts no change"):
        fit(ts, (0, 2), Distance(), still)
    with pytest.raises(InfeasibleToleranceError, match="decides no step"):
        fit(ts, (0,), Distance(), still)
    two = fit((2.0, 1.0), (0, 1), Distance(), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert two.epsilon[1] < 1


def test_bad_input_is_refused():
    ts, table = steady(6)
    score = Distance()
    for plan in ((), (1, 2), (0, 3, 2), (0, 6), (0, 2, 2)):
        with pytest.raises(SettingsError, match="refreshes must be rising steps"):
            fit(ts, plan, score, table)
    with pytest.raises(SettingsError, match="reuses 3 times in a row, but max_reuse is 2"):
        fit(ts, (0, 4), score, table, max_reuse=2)
    with pytest.raises(SettingsError, match="unknown shape 'smooth'"):
        fit(ts, (0, 4), score, table, shape="smooth")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="unknown direction"):
        fit(ts, (0, 4), score, table, shape="monotone", direction="up")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="belongs to shape='monotone'"):
        fit(ts, (0, 4), score, table, direction="rising")
    with pytest.raises(SettingsError, match="share"):
        fit(ts, (0, 4), score, table, share=0.0)
    with pytest.raises(SettingsError, match="at least two different"):
        fit(ts, (0, 4), score, table, knots=(1.0, 1.0))
    with pytest.raises(InputError, match="strictly decreasing timesteps"):
        fit(ts[::-1], (0, 4), score, table)
    with pytest.raises(InputError, match="shape"):
        fit(ts, (0, 4), score, table[:5])
    with pytest.raises(InputError, match=r"score at step 1 .* is nan"):
        fit(ts, (0, 4), score, table * math.nan)


# --- the schedule


def with_curve(substitute, profile, plan=PLANS["every second"]):
    ts = profile.timesteps
    score = score_of("substitute", profile, substitute_on(substitute, None))
    curve = fit(ts, plan, score, profile.displacement.astype(np.float64).mean(axis=2))
    return plan_of(ts, plan, substitute=substitute, tolerance=curve, model_class=profile.model.class_name)


def test_a_planned_tolerance_is_the_curve_of_the_plan(tmp_path):
    profile = load_profile("video-dit")
    plan = with_curve("hold", profile)
    path = save_plan(plan, tmp_path / "plan.json")
    for schedule in (Planned(plan=plan), Planned(path=path), Planned(path=str(path)), as_tolerance(path)):
        setup = Setup(profile, Hold())
        at = schedule.resolve(setup).start(cast(RunInfo, None), setup, score_of("bound", profile, Hold()), 3)
        assert [at(cast(Step, SimpleNamespace(t=t))) for t in plan.timesteps] == list(plan.tolerance.epsilon)
        assert isinstance(schedule, Planned)
        assert schedule.curve == plan.tolerance
        assert schedule.needs == Needs()
    assert Planned(plan=plan) == Planned(plan=plan)


@pytest.mark.parametrize("substitute", ["hold", "linear:time=t", "quadratic:time=t"])
def test_a_run_with_other_samples_keeps_to_the_plan_in_the_mean(mixture_profile, substitute):
    plan = with_curve(substitute, mixture_profile)
    policy = SenCache(epsilon=plan, max_reuse=8)
    denoiser = CachedDenoiser(Counted(mixture()), policy, profile=mixture_profile, substitute=substitute)
    counts = sampled(denoiser, 50, range(100, 116))
    assert abs(counts.mean() - len(plan.refreshes)) <= 1, counts


def test_a_plan_for_something_else_is_refused():
    profile = load_profile("video-dit")
    plan = with_curve("linear:time=t", profile)
    schedule = Planned(plan=plan)
    schedule.resolve(Setup(profile, Linear(time="t")))
    for other in (Hold(), Quadratic(time="t")):
        with pytest.raises(SettingsError, match="the plan was made for the substitute 'linear:time=t'"):
            schedule.resolve(Setup(profile, other))
    with pytest.raises(SettingsError, match="made for a"):
        schedule.resolve(Setup(load_profile("image-dit"), Linear(time="t")))


def test_plans_without_a_curve_and_wrong_settings_are_refused(tmp_path):
    bare = plan_of((3.0, 2.0, 1.0), (0, 2))
    with pytest.raises(SettingsError, match=r"no tolerance curve: made by hand.*policy 'schedule'"):
        Planned(plan=bare)
    with pytest.raises(SettingsError, match="either path"):
        Planned()
    with pytest.raises(SettingsError, match="either path"):
        Planned(path="plan.json", plan=bare)
    with pytest.raises(SettingsError, match="path must be the path"):
        Planned(path=3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="plan must be a plan"):
        Planned(plan="plan.json")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"missing\.json"):
        Planned(path=tmp_path / "missing.json")
