"""The objective against all plans. Install the package first: ``pip install -e plugins/cachepolicies-lemica``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies.planning import Objective, PlanningProblem, table_from_dense, trade_off
from cachepolicies_lemica import LexicographicMinimax
from cachepolicies_lemica.objective import Floats


def value(problem: PlanningProblem, refreshes: tuple[int, ...]) -> tuple[float, ...]:
    """Return the costs of a plan's stretches from the largest down, with zeros to the number of steps."""
    errors = problem.weights * problem.errors_of(refreshes)
    ends = (*refreshes, problem.num_steps)
    # summed from the left, as the objective does, so that the two agree to the last bit
    costs = [float(np.cumsum(errors[before:after])[-1]) for before, after in pairwise(ends)]
    return tuple(sorted(costs, reverse=True)) + (0.0,) * (problem.num_steps - len(costs))


def every_plan(problem: PlanningProblem) -> Iterator[tuple[int, ...]]:
    """Yield all refreshes that keep to the limits of the problem."""
    steps = problem.num_steps
    for count in range(steps):
        for chosen in itertools.combinations(range(1, steps), count):
            refreshes = (0, *chosen)
            longest = max(after - before - 1 for before, after in pairwise((*refreshes, steps)))
            if longest <= problem.longest and set(problem.fixed) <= set(refreshes):
                yield refreshes


@st.composite
def problems(draw: st.DrawFn, fewest: int = 1, most: int = 9, orders: tuple[int, ...] = (0, 1)) -> PlanningProblem:
    """Draw problems for substitutes of order 0 and 1, with real errors or with whole numbers, which make ties."""
    steps, order = draw(st.integers(fewest, most)), draw(st.sampled_from(orders))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = [(steps,) * (number + 2) for number in range(order + 1)]
    if draw(st.booleans()):
        weights = rng.uniform(0, 3, steps)
        errors = [rng.uniform(0, 1, shape) for shape in shapes]
    else:
        weights = rng.integers(0, 3, steps).astype(float)
        errors = [rng.integers(0, 4, shape).astype(float) for shape in shapes]
    max_reuse = draw(st.none() | st.integers(0, steps))
    always = tuple(draw(st.lists(st.integers(-steps, steps - 1), max_size=1)))
    return PlanningProblem(weights, table_from_dense(errors, max_reuse), max_reuse, always)


def test_it_keeps_the_contract() -> None:
    """It has what planning calls."""
    assert isinstance(LexicographicMinimax(), Objective)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_it_is_the_best_of_all_plans(problem: PlanningProblem) -> None:
    """For every budget, to the last bit."""
    known = [(len(refreshes), value(problem, refreshes)) for refreshes in every_plan(problem)]
    for solution in trade_off(problem, LexicographicMinimax()):
        best = min(costs for count, costs in known if count <= solution.budget)
        assert value(problem, solution.refreshes) == best
        assert solution.predicted == best[0]
        assert len(solution.refreshes) <= solution.budget


@settings(max_examples=50, deadline=None)
@given(problems(fewest=2, most=24))
def test_a_larger_budget_is_never_worse(problem: PlanningProblem) -> None:
    """In the whole order, not in the worst stretch alone."""
    values = [value(problem, solution.refreshes) for solution in trade_off(problem, LexicographicMinimax())]
    assert values == sorted(values, reverse=True)
    assert not any(values[-1])


@pytest.mark.parametrize("cost", [0.0, 1.0, 2.5, 4.0, 9.0])
def test_a_cost_joins_in_its_place(cost: float) -> None:
    """Sorted, and a zero drops out."""
    path = np.array([4.0, 2.5, 2.5, 1.0, 0.0, 0.0])
    joined = LexicographicMinimax().join(path, np.array([cost]))
    assert joined.tolist() == sorted([*path.tolist(), cost], reverse=True)[:6]


def test_what_cannot_be_stays_so() -> None:
    """A path that is not there has inf throughout, an edge that must not be used makes it the first entry."""
    objective = LexicographicMinimax()
    assert np.isinf(objective.join(np.full(3, np.inf), np.array([1.0]))).all()
    assert np.isinf(objective.join(np.array([2.0, 1.0, 0.0]), np.array([np.inf]))[0])


def test_it_is_neither_the_maximum_nor_the_sum() -> None:
    """Three of these steps have to be reused: 5, 4 and 0 are less in all, but 5, 3 and 3 have the smaller second."""
    weights = np.array([0, 5, 9, 4, 3, 0, 3, 9], dtype=float)
    problem = PlanningProblem(weights, table_from_dense([np.ones((8, 8))], 1), 1)

    def reused(objective: str | Objective) -> set[int]:
        (found,) = (solution for solution in trade_off(problem, objective) if solution.budget == 5)
        return set(range(8)) - set(found.refreshes)

    assert reused(LexicographicMinimax()) == {1, 4, 6}
    assert reused("sum") == reused("lexicographic") == {1, 3, 5}


@frozen
class Joining(LexicographicMinimax):
    """The objective, noting how many numbers it makes at every join."""

    joined: list[int] = field(factory=list)

    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Join as ever."""
        found = super().join(paths, edges)
        self.joined.append(found.size)
        return found


@pytest.mark.parametrize(("order", "max_reuse"), [(0, None), (1, 8)])
def test_fifty_steps_cost_one_pass(order: int, max_reuse: int | None) -> None:
    """For all budgets: from each step once, counts of edges x gaps of the history x next refreshes, 50 numbers each."""
    steps = np.arange(50.0)
    growth = np.maximum(steps - steps[:, None], 0)  # from a refresh (rows) to a step
    dense = [np.broadcast_to(growth, (50,) * (number + 2)) for number in range(order + 1)]
    problem = PlanningProblem(np.linspace(3, 1, 50), table_from_dense(dense, max_reuse), max_reuse)
    objective = Joining()
    assert trade_off(problem, objective)[-1].budget == 50
    farthest = problem.longest + 1
    most = [50 * max(r, 1) * (min(r, farthest) + 1) ** order * min(farthest, 50 - r) for r in range(50)]
    assert len(objective.joined) == 50
    assert all(made <= bound for made, bound in zip(objective.joined, most, strict=True))
