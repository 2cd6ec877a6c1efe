"""Which places of a network to compute at which steps, under a budget of FLOPs.

Given the steps at which the network is called, every place has a trade-off of its own between how often it is computed
and the error that it makes (a shortest path, as for whole steps). Which point of each to take is a knapsack, solved as
a mixed-integer programme with a proven bound. The errors that places make are taken to point the same way, everywhere:
where a part of many calls stands still, what it lacks adds up, and as independent errors it would be several times too
small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.substitute import Extrapolation
from cachepolicies.planning.error_table import Floats
from cachepolicies.planning.errors import errors_between
from cachepolicies.planning.problem import PlanningProblem, Solution
from cachepolicies.planning.shortest_path import trade_off


@frozen(eq=False)
class PlaceErrors:
    """What was measured at the places of a network along uncached runs, for B samples.

    Attributes:
        places: their names, P.
        shares: ``(P,)`` the part of a call's FLOPs that each does.
        growth: ``(P, N, B)`` RMS change of the call's output per RMS change of what flows on at the place, by step.
        distances: ``(P, N, N, B)`` RMS difference of what flowed on at the place at two steps.

    Raises:
        SettingsError: the shapes do not fit, a number is not finite or negative, or the shares exceed 1.
    """

    places: tuple[str, ...]
    shares: NDArray[np.float64]
    growth: NDArray[Any]
    distances: NDArray[Any]

    def __attrs_post_init__(self) -> None:
        count, steps, samples = len(self.places), self.growth.shape[1], self.growth.shape[-1]
        shapes = {"shares": (count,), "growth": (count, steps, samples), "distances": (count, steps, steps, samples)}
        for what, shape in shapes.items():
            array = getattr(self, what)
            if array.shape != shape:
                raise SettingsError(f"{what} has shape {array.shape}, expected {shape}")
            if not (np.isfinite(array) & (array >= 0)).all():
                raise SettingsError(f"{what} has a number that is negative or not finite")
        if not count or self.shares.sum() > 1 + 1e-9:
            raise SettingsError(f"the shares of {count} places sum to {self.shares.sum():g}, expected more than 0 to 1")


@frozen
class DepthSolution:
    """Steps at which the network is called, and at which of them each place is computed.

    Attributes:
        calls: rising, 0 first.
        steps: for each place, rising, 0 first, among ``calls``.
        work: part of the FLOPs of N full calls.
        predicted: RMS error of the sample.
        bound: no plan with these calls and at most the allowed work has a smaller one; ``predicted`` but for rounding
            where the optimum was proven.
    """

    calls: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    work: float
    predicted: float
    bound: float


def depth_solutions(
    errors: PlaceErrors,
    timesteps: Sequence[float],
    weights: Floats,
    whole: Sequence[Solution],
    work: float,
    inside: Extrapolation,
    *,
    seconds: float = 20.0,
) -> tuple[DepthSolution, ...]:
    """Return the best plan for several numbers of calls, by prediction, the best first.

    An error of a call that is made stays in the stand-ins for the calls that are skipped after it, so that it weighs as
    much as all of them together.

    Args:
        errors: what was measured.
        timesteps: N values of t.
        weights: ``(N,)`` RMS change of the sample per RMS change of the output at a step.
        whole: plans in steps alone by number of evaluations, as `trade_off` returns them, with these weights.
        work: most FLOPs of a run, a part of those of N full calls.
        inside: the substitute at the places.
        seconds: most to spend on the knapsack of one plan; where they do not suffice, the bound says what is open.

    Returns:
        One solution for each number of calls that is possible; those in steps alone are among them where the number
        fits.

    Raises:
        SettingsError: the work is too little for one call, or sizes do not fit.
    """
    steps = len(timesteps)
    if not 0 < work <= 1 or work * steps < 1 - 1e-9:
        raise SettingsError(f"work is {work:g} of {steps} calls; give from {1 / steps:g}, one call, to 1")
    if weights.shape != (steps,) or errors.growth.shape[1] != steps:
        raise SettingsError(
            f"{steps} timesteps, weights of shape {weights.shape} and errors of {errors.growth.shape[1]} steps"
        )
    by_calls = {len(solution.refreshes): solution for solution in whole}
    fit = math.floor(work * steps + 1e-9)
    tried = (
        _with_calls(errors, timesteps, weights, solution, work, inside, seconds)
        for count, solution in sorted(by_calls.items())
        if count >= fit
    )
    return tuple(sorted((one for one in tried if one is not None), key=lambda one: one.predicted))


def steps_alone(errors: PlaceErrors, solution: Solution, num_steps: int) -> DepthSolution:
    """Return a plan in steps alone as one in step and depth."""
    calls = solution.refreshes
    return DepthSolution(
        calls, (calls,) * len(errors.places), len(calls) / num_steps, solution.predicted, solution.predicted
    )


def _with_calls(
    errors: PlaceErrors,
    timesteps: Sequence[float],
    weights: Floats,
    whole: Solution,
    work: float,
    inside: Extrapolation,
    seconds: float,
) -> DepthSolution | None:
    """Return the best plan with the calls of a plan in steps alone; None where even the least is too much work."""
    calls, steps = whole.refreshes, len(timesteps)
    rest = 1.0 - float(errors.shares.sum())
    allowed = work * steps - rest * len(calls)
    if allowed < float(errors.shares.sum()) - 1e-9:
        return None
    if float(errors.shares.sum()) * len(calls) <= allowed + 1e-9:
        return steps_alone(errors, whole, steps)
    ends = (*calls, steps)
    lasting = np.array([weights[a:b].sum() for a, b in pairwise(ends)])
    curves = [_curve(errors, place, timesteps, calls, lasting, inside) for place in range(len(errors.places))]
    chosen, inside_calls, bound = _knapsack(curves, errors.shares, allowed, seconds)
    taken = [curve[index] for curve, index in zip(curves, chosen, strict=True)]
    spent = rest * len(calls) + math.fsum(
        share * len(solution.refreshes) for share, solution in zip(errors.shares.tolist(), taken, strict=True)
    )
    return DepthSolution(
        calls,
        tuple(tuple(calls[k] for k in solution.refreshes) for solution in taken),
        spent / steps,
        math.hypot(whole.predicted, inside_calls),
        math.hypot(whole.predicted, min(bound, inside_calls)),
    )


def _curve(
    errors: PlaceErrors,
    place: int,
    timesteps: Sequence[float],
    calls: tuple[int, ...],
    weights: Floats,
    inside: Extrapolation,
) -> tuple[Solution, ...]:
    """Return the best steps for one place by number of evaluations, counted among the calls."""
    chosen = np.array(calls)
    change = errors.distances[place][np.ix_(chosen, chosen)]
    visited = tuple(float(timesteps[k]) for k in calls)
    weighed = weights * errors.growth[place, chosen].mean(axis=-1)
    return trade_off(PlanningProblem(weighed, errors_between(change, visited, inside)), "sum")


def _knapsack(
    curves: Sequence[Sequence[Solution]], shares: Floats, allowed: float, seconds: float
) -> tuple[list[int], float, float]:
    """Choose a point of every curve, so that the sum of the errors is least and the work is allowed.

    Returns:
        The index in each curve, the sum, and a lower bound of it.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    owner = np.concatenate([np.full(len(curve), place) for place, curve in enumerate(curves)])
    sizes = np.array([solution.predicted for curve in curves for solution in curve])
    costs = shares[owner] * np.array([len(solution.refreshes) for curve in curves for solution in curve])
    scale = float(sizes.max()) or 1.0
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(curves), len(owner)))
    answer = milp(
        sizes / scale,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs[None, :], -np.inf, allowed + 1e-9)],
        options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )
    if answer.x is None:
        raise SettingsError(f"no plan was found in {seconds:g} s ({answer.message}); give more seconds")
    starts = np.concatenate([[0], np.cumsum([len(curve) for curve in curves])])
    chosen = [int(np.argmax(answer.x[a:b])) for a, b in pairwise(starts.tolist())]
    picked = [a + index for a, index in zip(starts.tolist(), chosen, strict=False)]
    total = float(sizes[picked].sum())
    return chosen, total, float(answer.mip_dual_bound) * scale
