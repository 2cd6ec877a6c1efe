"""The exact optimum for every budget at once: shortest paths with a fixed number of edges.

A state is the last refreshes that the substitute looks at; an edge leads from it to the next refresh, or to the end,
and carries the errors of the reuses between. States are visited in the order of their newest refresh, all numbers of
edges together, which is Bellman's recursion on an acyclic graph: no queue is needed, and unlike a general shortest-path
routine it takes maxima and other objectives as well as sums.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.base.errors import SettingsError
from cachepolicies.planning.error_table import Floats
from cachepolicies.planning.objectives import Largest, Objective, as_objective
from cachepolicies.planning.problem import PlanningProblem, Solution


def trade_off(problem: PlanningProblem, objective: str | Objective = "sum") -> tuple[Solution, ...]:
    """Return the optimum for every budget from the smallest possible to N.

    What is predicted never rises with the budget: where one more refresh would not help, the plan of the smaller budget
    stays.

    Args:
        problem: the problem.
        objective: a name, or an object that derives from `Objective`.

    Returns:
        One solution a budget, increasing.

    Raises:
        SettingsError: the objective is unknown, returns arrays of the wrong shape, or is signed and the problem has no
            sums.
    """
    made = as_objective(objective)
    if made.signed and problem.sums is None:
        raise SettingsError(
            f"objective {made.name!r} adds the errors of a stretch as vectors, and the problem has no sums; give "
            "PlanningProblem(sums=...) or another objective"
        )
    first = problem.fewest
    budgets = range(first, problem.num_steps + 1)
    if not made.bottleneck:
        return _best_up_to(_DynamicProgramme.run(problem, made, problem.num_steps), made, budgets)
    limits = [
        s.predicted
        for s in _best_up_to(_DynamicProgramme.run(problem, Largest(), problem.num_steps), Largest(), budgets)
    ]
    peaks = _smallest_peaks(problem)
    found: list[Solution] = []
    while len(found) < len(limits):
        limit = limits[len(found)]
        same = range(first + len(found), first + len(limits) - limits[::-1].index(limit))
        solved = _best_up_to(_DynamicProgramme.run(problem, made, same[-1], limit, peaks), made, same)
        found += [Solution(s.budget, limit, s.refreshes) for s in solved]
    return tuple(found)


def _best_up_to(programme: _DynamicProgramme, objective: Objective, budgets: range) -> tuple[Solution, ...]:
    """Return the best of all numbers of refreshes up to each budget."""
    best: int | None = None
    solved: Solution | None = None
    found = []
    for count in range(1, budgets[-1] + 1):
        value = programme.value(count)
        if np.isfinite(value[0]) and (best is None or bool(_less(value, programme.value(best)))):
            best, solved = count, None
        if count in budgets:
            if best is None:
                raise AssertionError(f"no path with {count} edges, though {budgets[0]} suffice")
            if solved is None:
                solved = Solution(count, objective.cost(programme.value(best)), programme.path(best))
            found.append(Solution(count, solved.predicted, solved.refreshes))
    return tuple(found)


@frozen(eq=False)
class _DynamicProgramme:
    """The values of the best paths.

    Attributes:
        values: ``(M + 1, N + 1, G, ..., G, K)``: over the number of edges, the newest refresh (N is the end), the
            gaps to the refreshes before it (0: there is none), and the value's entries.
        came: where it came from: with gaps, the gap that was dropped; without, the refresh before.
    """

    values: Floats
    came: NDArray[np.int16]

    @classmethod
    def run(
        cls,
        problem: PlanningProblem,
        objective: Objective,
        most: int,
        limit: float | None = None,
        peaks: Floats | None = None,
    ) -> _DynamicProgramme:
        """Find the best paths with up to ``most`` edges, none of which has a weighted error above ``limit``."""
        steps, order = problem.num_steps, problem.order
        bounds = _EdgeCounts.of(problem, limit, peaks)
        farthest = max(bounds.reach)
        start = np.asarray(objective.start(most), dtype=np.float64)
        if start.ndim != 1 or not len(start):
            raise SettingsError(f"objective {objective.name!r}: start({most}) has shape {start.shape}, expected (K,)")
        gaps = (farthest + 1,) * order
        values = np.full((most + 1, steps + 1, *gaps, len(start)), np.inf)
        came = np.full((most + 1, steps + 1, *gaps), -1, dtype=np.int16)
        origin: tuple[Any, ...] = (0, 0, *(0,) * order)
        values[origin] = start
        for r, reach in enumerate(bounds.reach):
            few, many = bounds.done[r], min(r, most - bounds.left[r])
            if few > many:
                continue
            near = tuple(slice(0, min(r, farthest) + 1) for _ in range(order))
            edges = _edges(problem, objective, r, reach, near, limit)
            source: tuple[Any, ...] = (slice(few, many + 1), r, *near)
            paths = values[source]
            joined = objective.join(paths[..., None, :], edges[None])
            expected = (*paths.shape[:-1], reach, len(start))
            if joined.shape != expected:
                raise SettingsError(
                    f"objective {objective.name!r}: join returned the shape {joined.shape}, expected {expected}"
                )
            lengths = np.arange(1, reach + 1)
            after = slice(few + 1, many + 2)
            target: tuple[Any, ...]
            if order:
                chosen = _least(joined, axis=order)
                kept = np.take_along_axis(joined, chosen[..., None], axis=order).squeeze(order)
                target = (after, r + lengths, lengths, *near[1:])
                values[target] = np.moveaxis(kept, -2, 1)
                came[target] = np.moveaxis(chosen.squeeze(order), -1, 1)
            else:
                target = (after, slice(r + 1, r + 1 + reach))
                better = _less(joined, values[target])
                values[target] = np.where(better[..., None], joined, values[target])
                came[target] = np.where(better, r, came[target])
        return cls(values, came)

    def value(self, count: int) -> Floats:
        """Return the value ``(K,)`` of the best path to the end with ``count`` edges."""
        entry: tuple[Any, ...] = (count, -1, *self._last(count))
        return cast("Floats", self.values[entry])

    def path(self, count: int) -> tuple[int, ...]:
        """Return the refreshes of the best path to the end with ``count`` edges, increasing."""
        at, gaps = self.values.shape[1] - 1, self._last(count)
        refreshes = []
        for edges in range(count, 0, -1):
            entry: tuple[Any, ...] = (edges, at, *gaps)
            came = int(self.came[entry])
            at, gaps = (at - gaps[0], (*gaps[1:], came)) if gaps else (came, ())
            refreshes.append(at)
        return tuple(reversed(refreshes))

    def _last(self, count: int) -> tuple[int, ...]:
        """Return the gaps of the best path to the end."""
        ends = self.values[count, -1]
        shape = ends.shape[:-1]
        best = int(_least(ends.reshape(-1, ends.shape[-1]), axis=0)[0])
        return tuple(int(gap) for gap in np.unravel_index(best, shape)) if shape else ()


def _edges(
    problem: PlanningProblem,
    objective: Objective,
    r: int,
    reach: int,
    near: tuple[slice, ...],
    limit: float | None,
) -> Floats:
    """Return what the objective needs of the edges from r, ``(gaps..., reach, E)``."""
    errors = _sums(problem, r, reach - 1, near) if objective.signed else _weighted(problem, r, reach - 1, near)
    edges = np.asarray(objective.edges(errors), dtype=np.float64)
    if edges.ndim != errors.ndim + 1 or edges.shape[:-1] != (*errors.shape[:-1], reach):
        raise SettingsError(
            f"objective {objective.name!r}: edges returned the shape {edges.shape} for errors of shape {errors.shape}, "
            f"expected {(*errors.shape[:-1], reach)} and one axis more"
        )
    if limit is None:
        return edges
    return np.where(Largest().edges(errors) <= limit, edges, np.inf)


def _weighted(problem: PlanningProblem, r: int, reuses: int, near: tuple[slice, ...]) -> Floats:
    """Return the weighted errors of the reuses after r, ``(gaps..., reuses)``."""
    entry: tuple[Any, ...] = (r, slice(0, reuses), *near)
    errors = np.moveaxis(problem.errors[entry], 0, -1)
    with np.errstate(invalid="ignore"):
        found = errors * problem.weights[r + 1 : r + 1 + reuses]
    found[np.isinf(errors)] = np.inf  # where there is no such history, also if nothing weighs there
    return cast("Floats", found)


def _sums(problem: PlanningProblem, r: int, reuses: int, near: tuple[slice, ...]) -> Floats:
    """Return the sums of the first 1, 2, ... weighted errors after r, ``(gaps..., reuses)``."""
    if problem.sums is None:
        raise AssertionError("a signed objective without sums")  # trade_off refuses it
    entry: tuple[Any, ...] = (r, slice(0, reuses), *near)
    return cast("Floats", np.moveaxis(problem.sums[entry], 0, -1))


@frozen
class _EdgeCounts:
    """How many edges a path has at least, on both sides of a refresh.

    Attributes:
        reach: ``(N,)`` the length of the longest edge from every refresh.
        done: ``(N + 1,)`` the fewest edges from step 0 to there.
        left: ``(N + 1,)`` the fewest edges from there to the end.
    """

    reach: list[int]
    done: list[int]
    left: list[int]

    @classmethod
    def of(cls, problem: PlanningProblem, limit: float | None, peaks: Floats | None) -> _EdgeCounts:
        """Find them, for edges without a weighted error above ``limit`` whatever the refreshes before."""
        steps = problem.num_steps
        ends = (*problem.fixed[1:], steps)
        reach = [min(problem.longest + 1, next(end for end in ends if end > r) - r) for r in range(steps)]
        if limit is not None and peaks is not None:
            within = 1 + np.count_nonzero(peaks <= limit, axis=1)
            reach = [min(pair) for pair in zip(reach, within.tolist(), strict=True)]
        # a shorter edge is always there too, so that the fewest edges never fall along the run
        done, left = [0], [0] * (steps + 1)
        for r in range(steps):
            done += [done[r] + 1] * max(0, r + reach[r] + 1 - len(done))
        for r in reversed(range(steps)):
            left[r] = 1 + min(left[r + 1 : r + reach[r] + 1])
        return cls(reach, done, left)


def _smallest_peaks(problem: PlanningProblem) -> Floats:
    """Return the largest weighted error of 1, 2, ... n reuses after each step, ``(N, n)``.

    With the refreshes before that make it smallest; inf beyond the end.
    """
    found = np.full((problem.num_steps, problem.longest), np.inf)
    everything = (slice(None),) * problem.order
    for r in range(problem.num_steps):
        reuses = min(problem.longest, problem.num_steps - 1 - r)
        errors = np.maximum.accumulate(_weighted(problem, r, reuses, everything), axis=-1)
        found[r, :reuses] = errors.min(axis=tuple(range(errors.ndim - 1)))
    return found


def _less(one: Floats, other: Floats) -> Any:
    """Return where ``one`` is smaller in the first entry of the last axis in which they differ."""
    if one.shape[-1] == 1:
        return one[..., 0] < other[..., 0]
    differ = one != other
    first = differ.argmax(axis=-1)[..., None]
    smaller = np.take_along_axis(one < other, first, axis=-1)
    return smaller[..., 0]


def _least(values: Floats, axis: int) -> NDArray[np.intp]:
    """Return the index of the smallest value along an axis, kept with size 1; the last axis has the values' entries."""
    if values.shape[-1] == 1:
        return cast("NDArray[np.intp]", values[..., 0].argmin(axis=axis, keepdims=True))
    among = np.ones(values.shape[:-1], dtype=np.bool_)
    for entry in range(values.shape[-1]):
        here = np.where(among, values[..., entry], np.inf)
        among &= here <= here.min(axis=axis, keepdims=True)
    return cast("NDArray[np.intp]", among.argmax(axis=axis, keepdims=True))
