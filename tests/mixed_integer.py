"""The optimum of a planning problem by a mixed-integer programme: a check of the shortest path by another method.

One binary variable for every edge of the graph of `cachepolicies.planning.shortest_path`; what flows into a state flows
out of it, one unit flows from step 0 to the end, and the number of edges is at most the budget. The weighted error of a
step is then linear in the variables, because exactly one chosen edge passes over the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
from attrs import frozen

from cachepolicies.planning.error_table import Floats
from cachepolicies.planning.problem import PlanningProblem, Solution

MOST_EDGES = 60_000
"""Most binary variables; without a limit on reuses 250 steps of order 0 have 31 375, 50 steps of order 1 have 22 100.

HiGHS takes seconds for 50 steps of order 0, about a minute for 22 100 variables and minutes beyond that; a small
``max_reuse`` helps.
"""

_SCALE = 1e3
"""What the largest cost is scaled to: HiGHS stops at an absolute gap of 1e-6, whatever the units."""

_ROUNDING = 1e-9
"""Relative slack by which an edge may exceed the smallest possible maximum and still be allowed."""


def weighted(problem: PlanningProblem, refreshes: Sequence[int]) -> Floats:
    """Return the weighted error of every step, ``(N,)`` float64; see `PlanningProblem.errors_of`."""
    return problem.weights * problem.errors_of(refreshes)


def solve(problem: PlanningProblem, budget: int, objective: str = "sum") -> Solution:
    """Return the optimum for one budget, found by HiGHS (``scipy.optimize.milp``).

    Args:
        problem: the problem.
        budget: most refreshes.
        objective: ``"sum"``, ``"max"`` or ``"lexicographic"``.

    Returns:
        The solution; where several plans are equally good, any of them.

    Raises:
        SettingsError: the budget is impossible.
        RuntimeError: there are too many edges, or the solver gave up.
    """
    budget = problem.check_budget(budget)
    graph = _Graph.of(problem)
    if objective == "sum":
        chosen = _minimise(graph, budget, "sum")
        return Solution(budget, float(weighted(problem, chosen).sum()), chosen)
    chosen = _minimise(graph, budget, "max")
    largest = float(weighted(problem, chosen).max())
    if objective == "lexicographic":
        chosen = _minimise(graph.below(largest * (1 + _ROUNDING)), budget, "sum")
        largest = float(weighted(problem, chosen).max())
    return Solution(budget, largest, chosen)


@frozen(eq=False)
class _Graph:
    """The edges between states.

    Attributes:
        num_steps: N.
        states: the number of states with the end, which is the last one; the first is step 0.
        tails: state that each edge leaves.
        heads: state that it leads to.
        starts: refresh that it leaves.
        errors: weighted errors of the reuses on it.
    """

    num_steps: int
    states: int
    tails: list[int]
    heads: list[int]
    starts: list[int]
    errors: list[Floats]

    @classmethod
    def of(cls, problem: PlanningProblem) -> _Graph:
        """List all states that step 0 leads to, and their edges."""
        steps, order, longest = problem.num_steps, problem.order, problem.longest
        ends = (*problem.fixed[1:], steps)
        states: dict[tuple[int, ...], int] = {(0,): 0}
        waiting: list[tuple[int, ...]] = [(0,)]
        tails: list[int] = []
        heads: list[tuple[int, ...]] = []
        starts: list[int] = []
        errors: list[Floats] = []
        for state in waiting:  # grows while it is read
            r = state[0]
            gaps = [newer - older for newer, older in pairwise(state)]
            gaps += [0] * (order - len(gaps))
            entry: tuple[Any, ...] = (r, slice(None), *gaps)
            after = problem.errors[entry][: steps - 1 - r] * problem.weights[r + 1 :][:longest]
            for s in range(r + 1, min(next(end for end in ends if end > r), r + 1 + longest) + 1):
                head = (s, *state)[: order + 1] if s < steps else ()
                if head and head not in states:
                    states[head] = len(states)
                    waiting.append(head)
                tails.append(states[state])
                heads.append(head)
                starts.append(r)
                errors.append(after[: s - r - 1])
            if len(tails) > MOST_EDGES:
                raise RuntimeError(f"{steps} steps of order {order}: more than {MOST_EDGES} edges")
        states[()] = len(states)
        return cls(steps, len(states), tails, [states[head] for head in heads], starts, errors)

    def below(self, limit: float) -> _Graph:
        """Return the graph without the edges that have an error above ``limit``."""
        kept = [number for number, errors in enumerate(self.errors) if errors.max(initial=0.0) <= limit]

        def only(values: list[Any]) -> list[Any]:
            return [values[number] for number in kept]

        return _Graph(
            self.num_steps, self.states, only(self.tails), only(self.heads), only(self.starts), only(self.errors)
        )


def _minimise(graph: _Graph, budget: int, what: Literal["sum", "max"]) -> tuple[int, ...]:
    """Return the refreshes of the path that has the smallest sum or maximum of weighted errors."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, vstack

    count = len(graph.tails)
    edges = np.arange(count)
    flow = csr_array((np.ones(count), (graph.tails, edges)), shape=(graph.states, count))
    flow = flow - csr_array((np.ones(count), (graph.heads, edges)), shape=(graph.states, count))
    supply = np.zeros(graph.states)
    supply[0], supply[-1] = 1.0, -1.0
    used = csr_array(np.ones((1, count)))
    sums = np.array([errors.sum() for errors in graph.errors])
    largest = max((float(errors.max(initial=0.0)) for errors in graph.errors), default=0.0)
    integral, upper = np.ones(count), np.ones(count)
    if what == "sum":
        cost = sums * (_SCALE / (sums.max() or 1.0))
        constraints = [LinearConstraint(flow, supply, supply), LinearConstraint(used, 0, budget)]
    else:
        # one more variable, the maximum: at least the error of every step
        lengths = [len(errors) for errors in graph.errors]
        rows = np.concatenate([start + 1 + np.arange(n) for start, n in zip(graph.starts, lengths, strict=True)])
        values = np.concatenate(graph.errors) * (_SCALE / (largest or 1.0))
        steps = csr_array((values, (rows, np.repeat(edges, lengths))), shape=(graph.num_steps, count))
        column = csr_array(-np.ones((graph.num_steps, 1)))
        empty = csr_array((graph.states + 1, 1))
        both = vstack([hstack([vstack([flow, used]), empty]), hstack([steps, column])]).tocsr()
        lower = np.concatenate([supply, [0.0], np.full(graph.num_steps, -np.inf)])
        constraints = [LinearConstraint(both, lower, np.concatenate([supply, [budget], np.zeros(graph.num_steps)]))]
        cost = np.concatenate([np.zeros(count), [1.0]])
        integral, upper = np.concatenate([integral, [0.0]]), np.concatenate([upper, [np.inf]])
    result = milp(
        cost,
        integrality=integral,
        bounds=Bounds(np.zeros_like(upper), upper),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if not result.success:
        raise RuntimeError(f"the mixed-integer programme with budget {budget} was not solved: {result.message}")
    chosen = np.flatnonzero(result.x[:count] > 0.5)
    return cast("tuple[int, ...]", tuple(sorted(graph.starts[number] for number in chosen)))
