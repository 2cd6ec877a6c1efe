"""Planning: the shortest path against all plans and a mixed-integer programme, the limits, the errors, bad input."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import ClassVar

import attrs
import numpy as np
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from cachepolicies.base.errors import NeedsError, PolicyError, ProfileError, SettingsError
from cachepolicies.planning import (
    Objective,
    PlanningProblem,
    Signed,
    Sum,
    measured_errors,
    plan,
    predicted_errors,
    signed_sums,
    table_from_dense,
    trade_off,
)
from cachepolicies.planning import planner as planner_module
from cachepolicies.planning.error_table import existing, table_shape
from cachepolicies.planning.stretches import ACTED_UPON
from cachepolicies.profiles.schema import SchedulerInfo
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.substitutes import Hold, Linear, Quadratic
from made_profiles import outputs, profile_of
from mixed_integer import solve, weighted

OBJECTIVES = ("sum", "max", "lexicographic")


def value(problem, refreshes, objective):
    errors = weighted(problem, refreshes)
    return {"sum": (errors.sum(),), "max": (errors.max(),), "lexicographic": (errors.max(), errors.sum())}[objective]


def every_plan(problem):
    steps = problem.num_steps
    for count in range(steps):
        for chosen in itertools.combinations(range(1, steps), count):
            refreshes = (0, *chosen)
            longest = max(b - a - 1 for a, b in pairwise((*refreshes, steps)))
            if longest <= problem.longest and set(problem.fixed) <= set(refreshes):
                yield refreshes


def same(one, other):
    return np.allclose(one, other, rtol=1e-6, atol=1e-9)


@st.composite
def problems(draw, largest=12, orders=(0, 1)):
    steps, order = draw(st.integers(1, largest)), draw(st.sampled_from(orders))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):  # like a trajectory: errors grow with the distance
        k, r = np.ogrid[:steps, :steps]
        growth = np.abs(k - r).astype(float) ** draw(st.sampled_from([0.5, 1.0, 2.0]))
        dense = [growth.T * rng.uniform(0.5, 1.5, (steps,) * (j + 2)) for j in range(order + 1)]
    else:  # whole numbers make ties
        dense = [rng.integers(0, 4, (steps,) * (j + 2)).astype(float) for j in range(order + 1)]
    weights = rng.uniform(0, 3, steps) * (rng.random(steps) < 0.8)
    max_reuse = draw(st.none() | st.integers(0, steps + 1))
    always = tuple(draw(st.lists(st.integers(-steps, steps - 1), max_size=2)))
    return PlanningProblem(weights, table_from_dense(dense, max_reuse), max_reuse, always)


# ------------------------------------------------------------------------------------------------ optimality


@settings(max_examples=200)
@given(problem=problems(largest=11), objective=st.sampled_from(OBJECTIVES), share=st.floats(0, 1))
def test_both_solvers_agree(problem, objective, share):
    budget = problem.fewest + round(share * (problem.num_steps - problem.fewest))
    found = solve(problem, budget, objective)
    best = next(s for s in trade_off(problem, objective) if s.budget == budget)
    assert same(value(problem, found.refreshes, objective), value(problem, best.refreshes, objective))
    assert same(found.predicted, best.predicted)
    assert len(found.refreshes) <= budget


@settings(max_examples=60)
@given(problem=problems(largest=9, orders=(0, 1, 2)), objective=st.sampled_from(OBJECTIVES))
def test_nothing_is_better_than_the_shortest_path(problem, objective):
    plans = [(len(refreshes), value(problem, refreshes, objective)) for refreshes in every_plan(problem)]
    curve = trade_off(problem, objective)
    assert [s.budget for s in curve] == list(range(problem.fewest, problem.num_steps + 1))
    assert min(count for count, _ in plans) == problem.fewest
    for solution in curve:
        best = min(cost for count, cost in plans if count <= solution.budget)
        assert same(value(problem, solution.refreshes, objective), best)
        assert same(solution.predicted, best[0])


@settings(max_examples=10)
@given(problem=problems(largest=10), objective=st.sampled_from(OBJECTIVES), share=st.floats(0, 1))
def test_nothing_is_better_than_the_integer_programme(problem, objective, share):
    budget = problem.fewest + round(share * (problem.num_steps - problem.fewest))
    best = min(value(problem, r, objective) for r in every_plan(problem) if len(r) <= budget)
    assert same(value(problem, solve(problem, budget, objective).refreshes, objective), best)


@settings(max_examples=60)
@given(problem=problems(largest=30, orders=(0, 1, 2)), objective=st.sampled_from(OBJECTIVES))
def test_limits_are_kept_and_a_larger_budget_is_never_worse(problem, objective):
    curve = trade_off(problem, objective)
    for solution in curve:
        refreshes = solution.refreshes
        assert refreshes[0] == 0
        assert len(refreshes) <= solution.budget
        assert set(problem.fixed) <= set(refreshes)
        assert max(b - a - 1 for a, b in pairwise((*refreshes, problem.num_steps))) <= problem.longest
    assert all(after.predicted <= before.predicted for before, after in pairwise(curve))
    assert curve[-1].predicted == 0


def test_the_sum_is_what_scipy_finds_on_the_layered_graph():
    steps = 30
    rng = np.random.default_rng(3)
    dense = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps))) * rng.uniform(0.5, 1.5, (steps, steps))
    problem = PlanningProblem(rng.uniform(0, 2, steps), table_from_dense([dense]))
    tails, heads, costs = [], [], []
    for layer, r in itertools.product(range(steps), range(steps)):
        for s in range(r + 1, steps + 1):
            tails.append(layer * (steps + 1) + r)
            heads.append((layer + 1) * (steps + 1) + s)
            # an edge without reuses costs 0, which a sparse graph would take for no edge: each costs 1 more
            costs.append(1 + (problem.weights[r + 1 : s] * dense[r, r + 1 : s]).sum())
    places = np.array((tails, heads), dtype=np.int32)  # older versions of scipy take no others
    graph = csr_array((costs, tuple(places)), shape=((steps + 1) ** 2,) * 2)
    distances = dijkstra(graph, indices=0).reshape(steps + 1, steps + 1)[:, steps]
    exact = distances[1:] - np.arange(1, steps + 1)
    assert np.allclose([s.predicted for s in trade_off(problem, "sum")], np.minimum.accumulate(exact), atol=1e-9)


@settings(max_examples=40)
@given(problem=problems(largest=8, orders=(0, 1, 2)), power=st.sampled_from([1.0, 2.0, 4.0]), seed=st.integers(0, 99))
def test_nothing_is_better_than_the_signed_path(problem, power, seed):
    """Whatever the sums of the stretches are, the path with the least powers of them is found."""
    sums = np.where(
        np.isfinite(problem.errors), np.random.default_rng(seed).uniform(0, 2, problem.errors.shape), np.inf
    )
    problem = attrs.evolve(problem, sums=sums)

    def cost(refreshes):
        total, gaps = 0.0, (0,) * problem.order
        for before, after in pairwise((*refreshes, problem.num_steps)):
            if after - before > 1:
                entry = (before, after - before - 2, *gaps)
                total += sums[entry] ** power
            gaps = (after - before, *gaps)[: problem.order]
        return total ** (1 / power)

    for solution in trade_off(problem, Signed(power=power)):
        best = min(cost(r) for r in every_plan(problem) if len(r) <= solution.budget)
        assert same(cost(solution.refreshes), best)
        assert same(solution.predicted, best)


def test_a_signed_objective_needs_sums():
    problem = PlanningProblem(np.ones(4), table_from_dense([np.ones((4, 4))]))
    with pytest.raises(SettingsError, match="the problem has no sums; give"):
        trade_off(problem, "signed")
    with pytest.raises(SettingsError, match="sums has shape"):
        attrs.evolve(problem, sums=np.ones((4, 2)))
    with pytest.raises(SettingsError, match="power must be a finite number >= 1"):
        Signed(power=0.5)


@frozen
class SortedCosts(Objective):
    """Edge costs, the largest first: an objective of somebody else."""

    name: ClassVar[str] = "sorted"

    def start(self, refreshes):
        return np.zeros(refreshes)

    def edges(self, errors):
        return Sum().edges(errors)

    def join(self, paths, edges):
        shape = np.broadcast_shapes(paths.shape[:-1], edges.shape[:-1])
        paths, edges = (np.broadcast_to(a, (*shape, a.shape[-1])) for a in (paths, edges))
        return -np.sort(-np.concatenate([paths, edges], axis=-1), axis=-1)[..., :-1]

    def cost(self, value):
        return float(value[0])


@settings(max_examples=25)
@given(problem=problems(largest=8))
def test_an_objective_from_outside_is_minimised(problem):
    def costs(refreshes):
        errors = weighted(problem, refreshes)
        ends = (*refreshes, problem.num_steps)
        found = sorted((errors[a:b].sum() for a, b in pairwise(ends)), reverse=True)
        return [*found, *[0.0] * (problem.num_steps - len(found))]

    for solution in trade_off(problem, SortedCosts()):
        best = min(costs(r) for r in every_plan(problem) if len(r) <= solution.budget)
        assert same(costs(solution.refreshes), best)


def test_an_objective_that_breaks_its_contract_is_named():
    problem = PlanningProblem(np.ones(4), table_from_dense([np.ones((4, 4))]))

    @frozen
    class Flat(SortedCosts):
        def edges(self, errors):
            return np.zeros(3)

    with pytest.raises(SettingsError, match=r"objective 'sorted': edges returned the shape \(3,\)"):
        trade_off(problem, Flat())
    with pytest.raises(SettingsError, match=r"objective is .* give signed, sum, max, lexicographic, or an object"):
        trade_off(problem, object())  # type: ignore[arg-type]


@frozen
class Joining(Sum):
    """The sum, noting how many values it makes at every join."""

    joined: list[int] = field(factory=list)

    def join(self, paths, edges):
        found = super().join(paths, edges)
        self.joined.append(found.size)
        return found


@pytest.mark.parametrize(
    ("steps", "order", "max_reuse"),
    [(50, 0, None), (50, 1, None), (50, 2, None), (250, 0, None), (50, 1, 8), (50, 2, 8)],
)
def test_all_budgets_cost_one_pass_over_the_states(steps, order, max_reuse):
    """Each step is left once for all budgets; there it joins counts of edges x gaps of the history x next refreshes."""
    shape = table_shape(steps, order, max_reuse)
    entries = np.nonzero(existing(shape))
    table = np.full(shape, np.inf)
    table[entries] = (2 + np.sin(entries[0])) * (entries[1] + 1.0) ** (order + 1)
    problem = PlanningProblem(np.linspace(3, 0.1, steps), table, max_reuse)
    objective = Joining()
    assert trade_off(problem, objective)[-1].budget == steps
    farthest = problem.longest + 1
    most = [max(r, 1) * (min(r, farthest) + 1) ** order * min(farthest, steps - r) for r in range(steps)]
    assert len(objective.joined) == steps
    assert all(made <= bound for made, bound in zip(objective.joined, most, strict=True))


# ------------------------------------------------------------------------------------------------ errors


def rms(values):
    return np.sqrt((values**2).mean(axis=-1))


@pytest.mark.parametrize("substitute", [Hold(), Linear(time="t"), Quadratic(time="t")])
@pytest.mark.parametrize("max_reuse", [None, 3])
def test_measured_errors_are_those_of_the_vectors(substitute, max_reuse):
    y = outputs()
    profile = profile_of(y)
    steps, ts = len(y), profile.timesteps
    table = measured_errors(profile, substitute, max_reuse)
    problem = PlanningProblem(np.ones(steps), table, max_reuse)
    rng = np.random.default_rng(1)
    for _ in range(50):
        refreshes = tuple(sorted({0, *rng.choice(steps, size=rng.integers(1, 6)).tolist()}))
        if max(b - a - 1 for a, b in pairwise((*refreshes, steps))) > problem.longest:
            continue
        found = problem.errors_of(refreshes)
        for k in range(steps):
            if k in refreshes:
                assert found[k] == 0
                continue
            past = [r for r in refreshes if r < k][::-1][: substitute.order + 1]
            weights = substitute.coefficients(ts[k], [ts[r] for r in past])
            stand_in = sum(c * y[r] for c, r in zip(weights, past, strict=True))
            assert found[k] == pytest.approx(rms(y[k] - stand_in).mean(), rel=1e-9)


def test_float32_tables_are_good_enough():
    exact, rounded = (measured_errors(profile_of(outputs(), dtype), Quadratic(time="t")) for dtype in (float, "f4"))
    there = existing(exact.shape)
    assert np.allclose(rounded[there], exact[there], rtol=1e-4, atol=1e-3)


def test_predicted_errors_are_the_score_of_the_mean_displacement():
    profile = profile_of(outputs())
    steps, ts = profile.num_steps, profile.timesteps
    moved = profile.tables["displacement"].mean(axis=2)
    made = plan(profile, 4, errors="predicted", weights="uniform")
    last = 0
    for k in range(steps):
        last = k if k in made.refreshes else last
        expected = 0.5 * moved[last, k] + 1e-3 * abs(ts[k] - ts[last])
        assert made.step_errors[k] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(SettingsError, match=r"displacement has shape \(2, 2\), expected \(9, 9\)"):
        predicted_errors(None, ts, moved[:2, :2])  # type: ignore[arg-type]


@frozen
class Doubling(Hold):
    def coefficients(self, t, refreshes):
        return (2.0,)


@frozen
class Spare(Hold):
    def coefficients(self, t, refreshes):
        return (0.5, 0.5)


def test_coefficients_that_break_the_contract_are_refused():
    profile = profile_of(outputs())
    with pytest.raises(PolicyError, match=r"coefficients \[2.0\] at t = .* sum to 1; plan with errors='predicted'"):
        measured_errors(profile, Doubling())
    with pytest.raises(PolicyError, match="has 2 coefficients for 1 refreshes"):
        measured_errors(profile, Spare())


CORRECTING = [
    Linear(time="t", correct=0.8, scheduler=FlowEuler()),
    Quadratic(time="t", correct=1.0, scheduler=FlowEuler()),
]


@pytest.mark.parametrize("substitute", [Hold(), Linear(time="t"), Quadratic(time="t"), *CORRECTING])
@pytest.mark.parametrize("max_reuse", [None, 3])
def test_signed_sums_are_those_of_the_vectors(substitute, max_reuse):
    y = outputs()
    profile = profile_of(y)
    steps, ts, weights = len(y), profile.timesteps, np.linspace(3, 0.5, len(y))
    table = signed_sums(profile, substitute, weights, max_reuse)
    there = existing(table.shape)
    assert np.isinf(table[~there]).all()
    for entry in np.argwhere(there).tolist():
        r, reuses, gaps = entry[0], entry[1] + 1, entry[2:]
        refreshes = [r]
        for gap in gaps:
            if gap:
                refreshes.append(refreshes[-1] - gap)
        levels, following = [ts[s] for s in refreshes], r + reuses + 1
        total = corrected = np.zeros(y.shape[1:])
        for k in range(r + 1, r + reuses + 1):
            bare = substitute.coefficients(ts[k], levels)
            total = total + weights[k] * (y[k] - sum(c * y[s] for c, s in zip(bare, refreshes, strict=False)))
            if following < steps:
                late = substitute.corrected_coefficients(ts[k], levels, ts[following])
                stand_in = sum(c * y[s] for c, s in zip(late, (following, *refreshes), strict=False))
                corrected = corrected + weights[k] * (y[k] - stand_in)
        expected = rms(total)
        if substitute.corrects and following < steps:
            expected = np.sqrt(rms(corrected) ** 2 + (ACTED_UPON * rms(total)) ** 2)
        assert table[tuple(entry)] == pytest.approx(expected.mean(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("substitute", [*CORRECTING, Linear(time="t")])
def test_coefficients_after_a_correction_are_the_same_one_by_one(substitute):
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(1, 1000, (40, 5)), axis=1)[:, ::-1]
    refreshes, now, following = t[:, 2::-1], t[:, 3], t[:, 4]
    many = substitute.many_corrected_coefficients(now, refreshes, following)
    assert many.sum(axis=1) == pytest.approx(np.ones(40))
    for row in range(40):
        one = substitute.corrected_coefficients(now[row], refreshes[row].tolist(), following[row])
        assert many[row, : len(one)] == pytest.approx(one)
        assert not many[row, len(one) :].any()


def test_predicted_errors_of_a_stretch_point_the_same_way():
    profile = profile_of(outputs())
    made = plan(profile, 4, errors="predicted", weights="uniform", objective=Signed(power=1))
    bound = plan(profile, 4, errors="predicted", weights="uniform", objective="sum")
    assert made.refreshes == bound.refreshes
    assert made.predicted == pytest.approx(bound.predicted)


# ------------------------------------------------------------------------------------------------ plan()


@pytest.mark.parametrize("substitute", ["hold", "linear", "quadratic"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_plan_says_what_it_does(substitute, objective):
    profile = profile_of(outputs())
    made = plan(profile, 5, substitute=substitute, objective=objective, weights="measured", always=(-1,), max_reuse=4)
    assert made.source.profile == "made-up"
    assert made.timesteps == profile.timesteps
    assert made.substitute == substitute
    assert made.always == (0, 8)
    assert {0, 8} <= set(made.refreshes)
    assert made.evaluations <= made.budget == 5
    assert made.weights == tuple(profile.curves["weight"].mean())
    assert made.predicted == pytest.approx(made.total if objective == "sum" else made.largest)
    assert made.at_budget(5).refreshes == made.refreshes
    used = {"hold": Hold(), "linear": Linear(time="t"), "quadratic": Quadratic(time="t")}[substitute]
    errors = measured_errors(profile, used, 4)
    assert same(solve(PlanningProblem(made.weights, errors, 4, (-1,)), 5, objective).predicted, made.predicted)


def test_a_target_takes_the_smallest_budget():
    profile = profile_of(outputs())
    curve = plan(profile, 1).curve
    for wanted in (0.0, 0.9 * curve[3].predicted, curve[4].predicted * (1 + 1e-9), 2 * curve[0].predicted):
        made = plan(profile, target=wanted)
        assert made.budget == min(point.budget for point in curve if point.predicted <= wanted)
        assert made.target == wanted


def test_the_tolerance_repeats_the_plan():
    from cachepolicies.planning.simulate import simulate
    from cachepolicies.scores import score_of

    profile = profile_of(outputs(30))
    followed = 0
    for budget in (8, 12, 15, 20):
        made = plan(profile, budget)
        if made.tolerance is None:
            assert made.no_tolerance
            continue
        followed += 1
        epsilon = [made.tolerance.at(t) for t in made.timesteps]
        score = score_of("substitute", profile, Hold())
        moved = profile.tables["displacement"].mean(axis=2)
        assert simulate(score, epsilon, made.timesteps, moved, None) == made.refreshes
    assert followed


def test_a_plan_without_a_tolerance_says_why():
    profile = profile_of(outputs())
    bare = attrs.evolve(profile, tables={"change": profile.tables["change"]})
    made = plan(bare, 4)
    assert made.tolerance is None
    assert made.no_tolerance is not None
    assert "'displacement'" in made.no_tolerance


def test_other_steps_than_the_calibrated_ones():
    profile = profile_of(outputs(12))
    made = plan(profile, 5, num_steps=20, errors="predicted", max_reuse=8)
    assert made.num_steps == 20
    assert made.timesteps == FlowEuler().timesteps(20)
    assert len(made.refreshes) <= 5
    assert len(made.curve) == 20 - 3 + 1
    with pytest.raises(SettingsError, match="12 timesteps of profile 'made-up' only, and the run has 20 others"):
        plan(profile, 5, num_steps=20)
    with pytest.raises(SettingsError, match="use errors='predicted'"):
        plan(profile, 5, scheduler="flow-euler:shift=3")


def test_a_substitute_object_is_recorded_as_a_spec():
    made = plan(profile_of(outputs()), 4, substitute=Linear(time="sigma", guard=3.0))
    assert made.substitute in ("linear:time='sigma',guard=3.0", "linear:guard=3.0,time='sigma'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget is 0, expected from 1 to the number of steps, 9"),
        ({"budget": 10}, "budget is 10, expected from 1 to the number of steps, 9"),
        ({"budget": 2.5}, r"budget is 2.5; a fraction of the uncached work lies between 0 and 1"),
        ({"budget": True}, "budget is True"),
        ({}, "give either budget or target, got budget=None and target=None"),
        ({"budget": 3, "target": 0.1}, "give either budget or target"),
        ({"target": -0.1}, "target is -0.1, expected a predicted error"),
        ({"target": float("nan")}, "target is nan"),
        ({"budget": 2, "max_reuse": 3}, "budget 2 and max_reuse 3 on 9 steps clash: at least 3 refreshes"),
        ({"budget": 3, "always": (2, 3, 4)}, r"budget 3 and 3 always steps \(2, 3, 4\) clash: .*at least 4 refreshes"),
        ({"budget": 2, "always": (0, 2, -1)}, r"budget 2 and 3 always steps \(0, 2, -1\) clash: at least 3 refreshes"),
        ({"budget": 3, "always": (2, 4), "max_reuse": 3}, r"max_reuse 3 and always \(2, 4\) .*clash, .*at least 4"),
        ({"budget": 5, "max_reuse": -1}, "max_reuse must be an integer >= 0, or None, got -1"),
        ({"budget": 5, "max_reuse": 1.5}, "max_reuse must be an integer >= 0, or None, got 1.5"),
        ({"budget": 5, "always": (9,)}, "always has 9, expected steps from 0 to 8, or from -1 back to -9"),
        ({"budget": 5, "always": (1.0,)}, "always has 1.0"),
        ({"budget": 5, "always": 3}, "always is 3, expected steps"),
        ({"budget": 5, "objective": "sums"}, "unknown objective 'sums': did you mean 'sum'"),
        ({"budget": 5, "errors": "guessed"}, "unknown errors 'guessed'"),
        ({"budget": 5, "weights": "none"}, "unknown weights 'none'"),
        ({"budget": 5, "scheduler": "karras-heun"}, "karras-heun|edm"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises((SettingsError, ProfileError), match=message):
        plan(profile_of(outputs()), **arguments)


def test_missing_numbers_are_named():
    profile = profile_of(outputs())
    without = attrs.evolve(profile, tables={})
    with pytest.raises(NeedsError, match="measured errors need 'change', which profile 'made-up' does not have"):
        plan(without, 4)
    with pytest.raises(NeedsError, match="'displacement'"):
        plan(without, 4, errors="predicted")
    with pytest.raises(NeedsError, match="geometric weights need the curve 'weight'"):
        plan(profile_of(outputs(), weight=False), 4)
    unknown = attrs.evolve(profile, scheduler=SchedulerInfo("nobodys", "flow"))
    with pytest.raises(NeedsError, match="scheduler 'nobodys' of profile 'made-up' is not registered here; give"):
        plan(unknown, 4)
    assert plan(unknown, 4, scheduler=FlowEuler()).refreshes == plan(profile, 4).refreshes


def test_two_evaluations_a_step_are_refused():
    heun = attrs.evolve(profile_of(outputs()), scheduler=SchedulerInfo("karras-heun", "edm"))
    with pytest.raises(SettingsError, match="'karras-heun' makes 2 evaluations a step"):
        plan(heun, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_weights_and_errors_are_named(bad, monkeypatch):
    weights = np.ones(9)
    weights[3] = bad
    monkeypatch.setattr(planner_module, "step_weights", lambda *_: weights)
    with pytest.raises(SettingsError, match=r"weights\[3\] is .*, expected a finite number >= 0"):
        plan(profile_of(outputs()), 4)
    dense = np.ones((4, 4))
    dense[1, 3] = bad
    with pytest.raises(SettingsError, match=r"errors\[1, 1\], the error at step 3 after a refresh at 1, is"):
        PlanningProblem(np.ones(4), table_from_dense([dense]))


def test_problems_of_the_wrong_shape():
    with pytest.raises(SettingsError, match=r"weights has shape \(2, 2\)"):
        PlanningProblem(np.ones((2, 2)), np.ones((2, 1)))
    with pytest.raises(SettingsError, match=r"errors has shape \(4, 4\), expected \(4, 3\)"):
        PlanningProblem(np.ones(4), np.ones((4, 4)))
    with pytest.raises(SettingsError, match=r"errors\[1\] has shape \(3, 3\), expected \(3, 3, 3\)"):
        table_from_dense([np.ones((3, 3)), np.ones((3, 3))])
    with pytest.raises(SettingsError, match="exceed the range of floating-point numbers"):
        PlanningProblem(np.full(4, 1e200), table_from_dense([np.full((4, 4), 1e200)]))
    with pytest.raises(SettingsError, match=r"order 2 with no max_reuse .* more than the limit .*; give max_reuse=\d+"):
        table_shape(100, 2, None)
    problem = PlanningProblem(np.ones(6), table_from_dense([np.ones((6, 6))], 1), 1)
    with pytest.raises(SettingsError, match="have 2 reuses in a row after step 0, more than max_reuse 1"):
        problem.errors_of((0, 3, 5))
    with pytest.raises(SettingsError, match=r"refreshes are \(1, 2\), expected increasing steps"):
        problem.errors_of((1, 2))
