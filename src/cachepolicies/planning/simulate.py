"""What SenCache's rule would do on known trajectories: no model, a table of displacements is enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.base.errors import InputError
from cachepolicies.contracts.score import Score

Floats = NDArray[np.float64]


@frozen
class SimulatedRun:
    """One simulated run.

    Attributes:
        refreshes: the steps that are evaluated, in order; step 0 is one of them.
        scores: one a step: the score that was compared with the tolerance, 0 at step 0.
    """

    refreshes: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def reuse_scores(self) -> tuple[float, ...]:
        """One a step: the score where the step is reused, 0 where it is evaluated."""
        evaluated = set(self.refreshes)
        return tuple(0.0 if step in evaluated else score for step, score in enumerate(self.scores))


def simulate(
    score: Score,
    tolerance: Sequence[float],
    timesteps: Sequence[float],
    displacement: NDArray[np.floating[Any]],
    max_reuse: int | None = None,
) -> tuple[int, ...]:
    """Return the refresh set that SenCache's rule gives on one trajectory (arXiv 2602.24208, Algorithm 1).

    Step 0 is evaluated. A later step is reused iff fewer than ``max_reuse`` reuses came since the last refresh and
    the score is at most the tolerance of the step.

    Args:
        score: predicts the change of the output.
        tolerance: one a step, RMS change of the output.
        timesteps: N noise levels in order of visit.
        displacement: ``(N, N)``, RMS distance of the latent between two steps of the trajectory.
        max_reuse: largest number of consecutive reuses; ``None`` for no limit.

    Returns:
        Step indices, rising, the first is 0.

    Raises:
        InputError: the lengths do not agree, or there is no step.
    """
    _check_lengths(tolerance, timesteps, displacement, 2)
    return simulate_run(score, tolerance, timesteps, displacement.tolist(), max_reuse).refreshes


def simulate_samples(
    score: Score,
    tolerance: Sequence[float],
    timesteps: Sequence[float],
    displacement: NDArray[np.floating[Any]],
    max_reuse: int | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return what `simulate` gives for each of S trajectories.

    Args:
        score: predicts the change of the output.
        tolerance: one a step.
        timesteps: N noise levels in order of visit.
        displacement: ``(N, N, S)``.
        max_reuse: largest number of consecutive reuses; ``None`` for no limit.

    Raises:
        InputError: the lengths do not agree, or there is no step.
    """
    _check_lengths(tolerance, timesteps, displacement, 3)
    tables = np.moveaxis(displacement, 2, 0).tolist()
    return tuple(simulate_run(score, tolerance, timesteps, table, max_reuse).refreshes for table in tables)


def mean_evaluations(
    score: Score,
    tolerance: Sequence[float],
    timesteps: Sequence[float],
    displacement: NDArray[np.floating[Any]],
    max_reuse: int | None = None,
) -> float:
    """Return the mean number of evaluations over the S trajectories of `simulate_samples`."""
    runs = simulate_samples(score, tolerance, timesteps, displacement, max_reuse)
    return sum(map(len, runs)) / len(runs)


def simulate_run(
    score: Score,
    tolerance: Sequence[float],
    timesteps: Sequence[float],
    displacement: Sequence[Sequence[float]],
    max_reuse: int | None,
) -> SimulatedRun:
    """Return refreshes and scores of one run; `simulate` without checks, on nested lists."""
    remembered = score.order + 1
    limit = len(timesteps) if max_reuse is None else max_reuse
    refreshes, scores = [0], [0.0]
    history: tuple[float, ...] = (timesteps[0],)
    for step in range(1, len(timesteps)):
        newest, t = refreshes[-1], timesteps[step]
        value = score.at(history, t, displacement[newest][step])
        scores.append(value)
        if not (step - newest <= limit and value <= tolerance[step]):  # also where the score is not a number
            refreshes.append(step)
            history = (t, *history)[:remembered]
    return SimulatedRun(tuple(refreshes), tuple(scores))


def _check_lengths(
    tolerance: Sequence[float], timesteps: Sequence[float], displacement: NDArray[np.floating[Any]], dimensions: int
) -> None:
    count = len(timesteps)
    if count < 1:
        raise InputError("a run has at least one step; give its timesteps")
    if len(tolerance) != count:
        raise InputError(f"{len(tolerance)} tolerances for {count} timesteps; give one a step")
    if displacement.ndim != dimensions or displacement.shape[:2] != (count, count):
        samples = ", samples" if dimensions == 3 else ""
        raise InputError(
            f"the displacements have shape {displacement.shape}, expected ({count}, {count}{samples}) for {count} steps"
        )
