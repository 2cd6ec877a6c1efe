"""Measure one batch: its trajectory, the finite differences along it, and the changes between every two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import InputError, ProfileError
from cachepolicies.base.units import difference, row_rms
from cachepolicies.calibration.arrival import check_arrival
from cachepolicies.calibration.blocks import BlockWatch
from cachepolicies.calibration.latents import filtered_changes, mean_distances, mean_magnitudes
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.calibration.trajectory import CheckedDenoiser, TrajectoryPoints, follow_model, follow_noised_data
from cachepolicies.calibration.weights import measure_weights
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.planning.replay import FILTERED
from cachepolicies.policies.easycache import CHANGE_L1, DISPLACEMENT_L1, OUTPUT_L1
from cachepolicies.profiles.schema import Trajectory
from cachepolicies.sites.probe import BlocksProbe


@frozen(eq=False)
class BatchMeasurements:
    """What was measured on the samples ``start`` to ``stop - 1`` (B of them; N steps, M pairs of points, W weights).

    Attributes:
        start: index of the first sample.
        stop: index after the last.
        alpha_x: ``(M, B)`` float64.
        alpha_t: ``(M, B)`` float64.
        rho: ``(M, B)`` float64.
        weight: ``(W, B)`` float64.
        displacement: ``(N, N, B)`` float64.
        change: ``(N, N, B)`` float64.
        blocks: further tables by name, ``(N, B)`` or ``(N - 1, B)`` float64: sizes of the outputs, changes of the
            filtered latent where its axes are known, and what was seen of the block stack if it was watched.
    """

    start: int
    stop: int
    alpha_x: NDArray[np.float64]
    alpha_t: NDArray[np.float64]
    rho: NDArray[np.float64]
    weight: NDArray[np.float64]
    displacement: NDArray[np.float64]
    change: NDArray[np.float64]
    blocks: Mapping[str, NDArray[np.float64]] = field(factory=dict)


def measure_batch(
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    *,
    start: int,
    num_steps: int,
    trajectory: Trajectory,
    evaluated: Callable[[int], None],
    probe: BlocksProbe | None = None,
    weighed: Sequence[int] = (),
    check: bool = False,
) -> BatchMeasurements:
    """Measure one batch; holds its N latents and the outputs of all its evaluations, nothing of other batches.

    Args:
        model: ``f(x, t, *args, **kwargs)``.
        scheduler: the scheduler.
        samples: the batch.
        start: index of its first sample.
        num_steps: N.
        trajectory: ``"model"`` or ``"noised"``.
        evaluated: called with the number of rows after every evaluation.
        probe: watches the block stack at the first evaluation of every step, where it is wanted.
        weighed: the steps that get a measured weight, with ``"model"`` only.
        check: whether the samples have to arrive at data; see `cachepolicies.calibration.arrival`.

    Raises:
        InputError: the denoiser's output is no tensor, of another batch size or not finite; or the sampler's is not.
        ProfileError: two neighbouring points have the same x or t, so that there is no direction to difference along;
            or the output never changes, so that there is no error to weigh.
        RunError: the scheduler's run visits other t than its ``timesteps``.
    """
    denoiser = CheckedDenoiser(model, samples, start, evaluated)
    with torch.no_grad():
        walk = follow_model if trajectory == "model" else follow_noised_data
        watch = None if probe is None else BlockWatch(probe, start)
        points, recording = walk(denoiser, scheduler, samples, num_steps, watch)
        if check and recording is not None:
            check_arrival(model, scheduler, samples, points.y[0], points.x[0], recording.sample)
        alpha_x, alpha_t, rho = _directional_differences(denoiser, points, start)
        weight = np.empty((0, len(samples)))
        if recording is not None:
            weight = measure_weights(denoiser, recording, weighed)
        return BatchMeasurements(
            start=start,
            stop=start + len(samples),
            alpha_x=alpha_x,
            alpha_t=alpha_t,
            rho=rho,
            weight=weight,
            displacement=_pairwise_rms(points.x[:num_steps]),
            change=_pairwise_rms(points.y),
            blocks=({} if watch is None else watch.tables()) | _looked_at(model, scheduler, samples, points, num_steps),
        )


def _looked_at(
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    points: TrajectoryPoints,
    num_steps: int,
) -> dict[str, NDArray[Any]]:
    """Return the tables that thresholds are solved for on, beside the distances."""
    changes = filtered_changes(model, scheduler, samples, points.x[:num_steps], points.t[:num_steps])
    found: dict[str, NDArray[Any]] = {
        OUTPUT_L1: mean_magnitudes(points.y),
        CHANGE_L1: mean_distances(points.y),
        DISPLACEMENT_L1: mean_distances(points.x[:num_steps]),
    }
    return found if changes is None else found | {FILTERED: changes}


def _directional_differences(
    denoiser: CheckedDenoiser, points: TrajectoryPoints, first: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Finite differences along the solver's own step, SenCache (arXiv 2602.24208), eqs. 11 and 12.

    ``alpha_x(t_k) = rms(f(x_{k+1}, t_k) - f(x_k, t_k)) / rms(x_{k+1} - x_k)`` and
    ``alpha_t(t_k) = rms(f(x_k, t_{k+1}) - f(x_k, t_k)) / |t_{k+1} - t_k|``; with them rho, the cosine of the angle
    between the two differences.
    """
    alpha_x, alpha_t, rho = [], [], []
    for k in range(len(points.x) - 1):
        x, t, y = points.x[k], points.t[k], points.y[k]
        x_next, t_next = points.x[k + 1], points.t[k + 1]
        dx = _to_numpy(row_rms(difference(x_next, x)))
        dt = _to_numpy((t_next.double() - t.double()).abs())
        for what, distance in (("x", dx), ("t", dt)):
            if not np.isfinite(distance).all():
                row = int(np.flatnonzero(~np.isfinite(distance))[0])
                raise InputError(
                    f"{what} is not finite after t = {float(t[row]):g} for sample {first + row} though the outputs "
                    "are; check the scheduler and the dtype of the latents"
                )
            if not distance.all():
                row = int(np.flatnonzero(distance == 0)[0])
                raise ProfileError(
                    f"{what} does not change between t = {float(t[row]):g} and the next point, "
                    f"t = {float(t_next[row]):g}, for sample {first + row}: there is no direction to difference along; "
                    "use fewer steps, other samples, or check the scheduler"
                )
        along_x = difference(denoiser(x_next, t), y)
        along_t = difference(denoiser(x, t_next), y)
        alpha_x.append(_to_numpy(row_rms(along_x)) / dx)
        alpha_t.append(_to_numpy(row_rms(along_t)) / dt)
        rho.append(_cosine(along_x, along_t))
    return np.stack(alpha_x), np.stack(alpha_t), np.stack(rho)


def _cosine(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Return ``<a, b> / (|a| |b|)`` of every row, ``(B,)``; 1 where one of them is zero.

    There is no angle then, and 1 is the one with which the score is the paper's bound.
    """
    a, b = a.double().reshape(a.shape[0], -1), b.double().reshape(b.shape[0], -1)
    product = _to_numpy(row_rms(a)) * _to_numpy(row_rms(b))
    mean = _to_numpy((a * b).mean(dim=1))
    cosine = np.divide(mean, product, out=np.ones_like(mean), where=product > 0)
    clipped: NDArray[np.float64] = cosine.clip(-1.0, 1.0)  # rounding alone leads beyond
    return clipped


def _pairwise_rms(values: list[Tensor]) -> NDArray[np.float64]:
    """Return the RMS difference of every two of N tensors ``(B, ...)`` as ``(N, N, B)``, symmetric, zero diagonal.

    In float64: the error of an extrapolation is a small difference of the squares of these numbers.
    """
    count, batch = len(values), values[0].shape[0]
    table = np.zeros((count, count, batch))
    for r in range(count - 1):
        # two at a time: all at once would need the memory of the trajectory again
        reference = values[r].double()
        rms = torch.stack([row_rms(values[k].double() - reference) for k in range(r + 1, count)])
        table[r, r + 1 :] = table[r + 1 :, r] = rms.cpu().numpy()
    return table


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
