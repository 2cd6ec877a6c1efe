"""The smoothest tolerance curve with a large margin that makes SenCache's rule follow a plan: two linear programmes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.contracts.score import Score
from cachepolicies.planning.simulate import simulate
from cachepolicies.planning.tolerance_curve import ToleranceCurve

Shape: TypeAlias = Literal["piecewise", "monotone"]
"""``"piecewise"``: linear between knots; ``"monotone"``: in addition never falling, or never rising, along the run."""

Direction: TypeAlias = Literal["rising", "falling"]
"""Along the run, from the first step to the last."""

LARGEST_MARGIN = 0.5 * math.log(2.0)
"""Larger margins are not asked for: to reuse every second step of a steady run, the tolerance has to lie between a
score and its double, so that no smooth curve has more."""

SHARE = 0.5
"""Which part of the largest possible margin is kept where it is traded for smoothness. Half is a margin of 17 %, a few
standard deviations of the displacement over samples; a smooth curve that refreshes every third step has 20 % at best.
"""

_LEAST_MARGIN = 1e-6
_BEYOND = 4.0
_CENTRING = 1e-3

Floats = NDArray[np.float64]


class InfeasibleToleranceError(SettingsError):
    """No tolerance curve of the shape that was asked for makes SenCache's rule follow the plan."""


def fit(
    timesteps: Sequence[float],
    refreshes: Sequence[int],
    score: Score,
    displacement: NDArray[np.floating[Any]],
    max_reuse: int | None = None,
    shape: Shape = "piecewise",
    *,
    direction: Direction | None = None,
    knots: Sequence[float] | None = None,
    share: float = SHARE,
) -> ToleranceCurve:
    """Return the smoothest tolerance with a large margin that makes SenCache's rule follow a plan.

    Along the plan the score S_k of every step is known. A reuse needs ``eps_k >= S_k``, a refresh ``eps_k < S_k``
    unless ``max_reuse`` forces it. In u = log eps two linear programmes (`scipy.optimize.linprog`, HiGHS) follow: the
    largest margin m with ``u_k >= log S_k + m`` at reuses and ``u_k <= log S_k - m`` at refreshes, m at most
    `LARGEST_MARGIN`; then, with a share of it, the smallest sum of the absolute second differences of u over t. A
    margin of 0.1 lets the score of a sample be 10 % off that of the plan.

    The result is checked by `simulate`: it reproduces the plan exactly.

    Args:
        timesteps: N noise levels of the plan, strictly decreasing.
        refreshes: step indices of the plan, rising, the first is 0.
        score: the one that the tolerance will be compared with.
        displacement: ``(N, N)``, RMS distance of the latent between two steps: the mean of the calibration runs.
        max_reuse: largest number of consecutive reuses; ``None`` for no limit. A refresh that it forces constrains
            nothing.
        shape: ``"piecewise"`` or ``"monotone"``.
        direction: of a monotone curve; where it is not given, the one with the larger margin.
        knots: the values of t at which the slope of log eps may change, at least two; every step if ``None``.
        share: which part of the largest margin is kept, above 0 and at most 1.

    Returns:
        A point for every step, with the margin that was reached.

    Raises:
        InfeasibleToleranceError: there is no such curve; names steps that clash.
        SettingsError: the plan is not valid (unsorted, out of range, more than ``max_reuse`` reuses in a row), unknown
            shape or direction, a direction without a monotone shape, share or knots out of range.
        InputError: timesteps and displacements do not fit together.
    """
    plan = _checked_plan(timesteps, refreshes, max_reuse)
    directions = _directions(shape, direction)
    if not 0 < share <= 1:
        raise SettingsError(f"share must be above 0 and at most 1, got {share!r}")
    basis = _basis(timesteps, knots)
    scores, reused, refreshed = _sides(timesteps, plan, score, displacement, max_reuse)
    failures = []
    solutions = []
    for sign in directions:
        programme = _MarginProgrammes(np.asarray(timesteps, dtype=np.float64), basis, scores, reused, refreshed, sign)
        margin, clash = programme.largest_margin()
        if margin < _LEAST_MARGIN:
            failures.append(_clash(clash, scores, refreshed, timesteps, sign))
        else:
            solutions.append((margin, programme))
    if not solutions:
        raise InfeasibleToleranceError(f"no {shape} tolerance curve follows this plan: {'; '.join(failures)}")
    margin, programme = max(solutions, key=lambda solution: solution[0])
    epsilon = np.exp(programme.smoothest(share * margin))
    given = simulate(score, epsilon.tolist(), timesteps, displacement, max_reuse)
    if given != plan:
        odd = sorted(set(given) ^ set(plan))
        raise InfeasibleToleranceError(
            f"the tolerance curve with the largest margin, {margin:.2g}, is within rounding of the scores at steps "
            f"{odd}, and does not reproduce the plan; use shape='piecewise' without knots, or another plan"
        )
    decided = np.array([*reused, *refreshed], dtype=np.int64)
    reached = float(np.abs(np.log(epsilon[decided]) - np.log(scores[decided])).min())
    return ToleranceCurve(tuple(timesteps), tuple(epsilon.tolist()), reached)


def _checked_plan(timesteps: Sequence[float], refreshes: Sequence[int], max_reuse: int | None) -> tuple[int, ...]:
    count, plan = len(timesteps), tuple(int(step) for step in refreshes)
    if any(later >= t for t, later in pairwise(timesteps)) or not all(math.isfinite(t) for t in timesteps):
        raise InputError(f"a tolerance curve needs finite, strictly decreasing timesteps, got {tuple(timesteps)}")
    if not plan or plan[0] != 0 or plan[-1] >= count or any(b <= a for a, b in pairwise(plan)):
        raise SettingsError(f"refreshes must be rising steps from 0 to below {count}, the first 0; got {plan}")
    longest = max(later - step - 1 for step, later in pairwise((*plan, count)))
    if max_reuse is not None and longest > max_reuse:
        raise SettingsError(f"the plan reuses {longest} times in a row, but max_reuse is {max_reuse}; plan with it")
    return plan


def _directions(shape: str, direction: str | None) -> tuple[int, ...]:
    if shape not in ("piecewise", "monotone"):
        raise SettingsError(f"unknown shape {shape!r} of a tolerance curve; choose 'piecewise' or 'monotone'")
    if direction not in (None, "rising", "falling"):
        raise SettingsError(f"unknown direction {direction!r}; choose 'rising' or 'falling', along the run")
    if shape == "piecewise":
        if direction is not None:
            raise SettingsError(f"direction={direction!r} belongs to shape='monotone'")
        return (0,)
    return {"rising": (1,), "falling": (-1,), None: (1, -1)}[direction]


def _basis(timesteps: Sequence[float], knots: Sequence[float] | None) -> Floats:
    """Return ``(N, K)``: log eps at the steps, linear in its values at the knots."""
    ts = np.asarray(timesteps, dtype=np.float64)
    if knots is None:
        return cast("Floats", np.eye(len(ts)))
    points = np.unique(np.asarray(knots, dtype=np.float64))[::-1]
    if len(points) < 2 or not np.isfinite(points).all():
        raise SettingsError(f"knots must be at least two different finite values of t, got {tuple(knots)}")
    hats = [np.interp(-ts, -points, row) for row in np.eye(len(points))]
    return cast("Floats", np.stack(hats, axis=1))


def _sides(
    timesteps: Sequence[float],
    plan: tuple[int, ...],
    score: Score,
    displacement: NDArray[np.floating[Any]],
    max_reuse: int | None,
) -> tuple[Floats, list[int], list[int]]:
    """Return the scores along the plan, the reuses that they decide and the refreshes that they decide."""
    if displacement.shape != (len(timesteps),) * 2:
        raise InputError(f"the displacements have shape {displacement.shape}, expected {(len(timesteps),) * 2}")
    distances = displacement.tolist()
    scores = np.zeros(len(timesteps))
    reused, refreshed = [], []
    history, newest = [timesteps[0]], 0
    for step in range(1, len(timesteps)):
        value = score.at(history[: score.order + 1], timesteps[step], distances[newest][step])
        if not 0 <= value < math.inf:
            raise InputError(f"the score at step {step} (t={timesteps[step]:g}) is {value}; it has to be finite, >= 0")
        scores[step] = value
        if step not in plan:
            if value > 0:  # a score of 0 is within any tolerance
                reused.append(step)
            continue
        if max_reuse is None or step - newest <= max_reuse:
            if value == 0:
                raise InfeasibleToleranceError(
                    f"the plan refreshes at step {step} (t={timesteps[step]:g}), where the score predicts no change at "
                    "all, which is within any tolerance; use the plan with the policy 'schedule'"
                )
            refreshed.append(step)
        history, newest = [timesteps[step], *history], step
    if not reused and not refreshed:
        raise InfeasibleToleranceError(
            "the score decides no step of this plan: it is 0, or max_reuse forces every refresh; any tolerance gives "
            "the plan, and none can be told from another"
        )
    return scores, reused, refreshed


class _MarginProgrammes:
    """The two linear programmes over the values at the knots, with the margin in the last column of the first."""

    def __init__(
        self, ts: Floats, basis: Floats, scores: Floats, reused: list[int], refreshed: list[int], sign: int
    ) -> None:
        steps = np.array([*reused, *refreshed], dtype=np.int64)
        self.steps = steps
        side = np.array([-1.0] * len(reused) + [1.0] * len(refreshed))  # -u <= -log S - m, u <= log S - m
        logs = np.log(scores[steps])
        self.basis, self.logs = basis, logs
        self.rows, self.limits = side[:, None] * basis[steps], side * logs
        slopes = np.diff(basis, axis=0)
        self.monotone = -sign * slopes if sign else np.zeros((0, basis.shape[1]))
        self.bounds = [(float(logs.min()) - _BEYOND, float(logs.max()) + _BEYOND)] * basis.shape[1]
        # Second differences in units of the mean step, so that the programme is well scaled.
        gaps = np.diff(ts) / max(abs(ts[-1] - ts[0]) / max(len(ts) - 1, 1), np.finfo(np.float64).tiny)
        self.bends = np.diff(slopes / gaps[:, None], axis=0)

    def largest_margin(self) -> tuple[float, list[int]]:
        """Return the margin and the steps that limit it."""
        count = self.basis.shape[1]
        rows = np.block([[self.rows, np.ones((len(self.rows), 1))], [self.monotone, np.zeros((len(self.monotone), 1))]])
        limits = np.concatenate([self.limits, np.zeros(len(self.monotone))])
        cost = np.zeros(count + 1)
        cost[-1] = -1.0
        values, duals = _solve_linear(cost, rows, limits, [*self.bounds, (None, LARGEST_MARGIN)])
        binding = np.abs(duals[: len(self.rows)]) > 1e-9
        return float(values[-1]), sorted(self.steps[binding].tolist())

    def smoothest(self, margin: float) -> Floats:
        """Return u at every step: least bent, and of those (nearly) the nearest to the scores."""
        count, bends, decided = self.basis.shape[1], len(self.bends), len(self.rows)
        width = count + bends + decided
        blocks = []
        limits: list[Floats] = [self.limits - margin, np.zeros(len(self.monotone))]
        for rows in (self.rows, self.monotone):
            blocks.append(np.hstack([rows, np.zeros((len(rows), width - count))]))
        near = self.basis[self.steps]
        for sign in (1.0, -1.0):
            blocks.append(np.hstack([sign * self.bends, -np.eye(bends), np.zeros((bends, decided))]))
            limits.append(np.zeros(bends))
            blocks.append(np.hstack([sign * near, np.zeros((decided, bends)), -np.eye(decided)]))
            limits.append(sign * self.logs)
        cost = np.concatenate([np.zeros(count), np.ones(bends), np.full(decided, _CENTRING)])
        bounds = [*self.bounds, *[(0.0, None)] * (width - count)]
        values, _ = _solve_linear(cost, np.vstack(blocks), np.concatenate(limits), bounds)
        return self.basis @ values[:count]


def _solve_linear(
    cost: Floats, rows: Floats, limits: Floats, bounds: Sequence[tuple[float | None, float | None]]
) -> tuple[Floats, Floats]:
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    result = linprog(cost, A_ub=csr_array(rows), b_ub=limits, bounds=bounds, method="highs")
    if not result.success:
        raise InfeasibleToleranceError(f"the linear programme of the tolerance curve was not solved: {result.message}")
    return result.x, result.ineqlin.marginals


def _clash(steps: list[int], scores: Floats, refreshed: list[int], timesteps: Sequence[float], sign: int) -> str:
    shape = {0: "with these knots", 1: "one that never falls", -1: "one that never rises"}[sign]
    words = [
        f"step {step} ({'refresh: below' if step in refreshed else 'reuse: at least'} {scores[step]:.4g}, "
        f"t={timesteps[step]:g})"
        for step in steps
    ]
    return f"{shape}: {' clashes with '.join(words)}"
