"""Where a calibration evaluates the denoiser: along the model's own run, or on data with noise added."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import InputError, RunError, SettingsError
from cachepolicies.base.outputs import tensor_of
from cachepolicies.calibration.blocks import BlockWatch
from cachepolicies.calibration.count import has_next_point
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.calibration.weights import Recording
from cachepolicies.contracts.scheduler import SamplingRun, Scheduler


@frozen(eq=False)
class CheckedDenoiser:
    """The model with its conditioning bound, checked and counted.

    Attributes:
        model: ``f(x, t, *args, **kwargs)``.
        samples: the batch.
        first: index of the batch's first sample, for messages.
        evaluated: called with the number of rows after every evaluation.
    """

    model: Callable[..., Any]
    samples: CalibrationSamples
    first: int
    evaluated: Callable[[int], None]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Evaluate at x ``(B, ...)`` and t ``(B,)``.

        Raises:
            InputError: the output holds no tensor, has another batch size, or is not finite.
        """
        y = tensor_of(self.model(x, t, *self.samples.args, **self.samples.kwargs))
        if y.ndim == 0 or y.shape[0] != x.shape[0]:
            raise InputError(
                f"the denoiser returned shape {tuple(y.shape)} for a batch of {x.shape[0]}; "
                "the first dimension must be the batch"
            )
        finite = torch.isfinite(y).flatten(1).all(dim=1) if y.ndim > 1 else torch.isfinite(y)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InputError(
                f"the denoiser returned a non-finite output during calibration at t = {float(t[row]):g} for sample "
                f"{self.first + row}; check the model, its dtype and this sample's input. "
                "Finished batches are kept in the checkpoint, if one was given"
            )
        self.evaluated(x.shape[0])
        return y


@frozen(eq=False)
class TrajectoryPoints:
    """Where the denoiser was evaluated: N points, and a last one without an evaluation if the pair with it exists.

    Attributes:
        x: N or N + 1 latents ``(B, ...)``, as the denoiser is called with.
        t: as many tensors ``(B,)``.
        y: N outputs ``(B, ...)``.
    """

    x: list[Tensor] = field(factory=list)
    t: list[Tensor] = field(factory=list)
    y: list[Tensor] = field(factory=list)

    def add(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> None:
        """Append a point. The denoiser or the sampler may write into its buffers later, hence the copies."""
        self.x.append(x.clone())
        self.t.append(t.clone())
        if y is not None:
            self.y.append(y.clone())


def follow_model(
    denoiser: CheckedDenoiser,
    scheduler: Scheduler,
    samples: CalibrationSamples,
    num_steps: int,
    watch: BlockWatch | None,
) -> tuple[TrajectoryPoints, Recording]:
    """Sample a batch with the model, and return where it was evaluated at every step and the run as it went.

    Raises:
        InputError: the denoiser's output is no tensor, of another batch size or not finite.
        RunError: the scheduler's run visits other t than its ``timesteps``.
    """
    timesteps = scheduler.timesteps(num_steps)
    begin = functools.partial(_begin, scheduler, samples, num_steps)
    run, x = begin()
    points = TrajectoryPoints()
    outputs: list[Tensor] = []
    first: list[int] = []
    while not run.finished:
        first_stage = run.stage == 0
        x_in, t_in = run.model_input(x)
        evaluate = functools.partial(watch.evaluate, denoiser) if watch is not None and first_stage else denoiser
        y = evaluate(x_in, t_in)
        if first_stage:
            first.append(len(outputs))
            points.add(x_in, t_in, y)
        outputs.append(points.y[-1] if first_stage else y.clone())
        x = run.advance(y, x)
    visited = [float(t[0]) for t in points.t]
    if len(visited) != num_steps or not np.allclose(visited, timesteps, rtol=1e-5, atol=1e-6):
        raise RunError(
            f"scheduler {scheduler.name!r} visited t = {visited} in {num_steps} steps, but its timesteps are "
            f"{list(timesteps)}; its adapter must announce the t of the first evaluation of every step"
        )
    if has_next_point(scheduler, timesteps):
        points.add(x, _final_t(scheduler, points.t[-1]))
    return points, Recording(begin, outputs, first, x.clone(), denoiser.first)


def _begin(scheduler: Scheduler, samples: CalibrationSamples, num_steps: int) -> tuple[SamplingRun, Tensor]:
    """Start the run of a batch, the same one every time, and return it with its first latent ``(B, ...)``."""
    # on the CPU, so that a sampler's noise is the same on every device; one a sample, so that batches do not matter
    generators = [torch.Generator().manual_seed(seed) for seed in samples.seeds]
    run = scheduler.begin(num_steps, generator=generators or None, device=samples.noise.device)
    return run, scheduler.initial(samples.noise, num_steps)


def follow_noised_data(
    denoiser: CheckedDenoiser,
    scheduler: Scheduler,
    samples: CalibrationSamples,
    num_steps: int,
    watch: BlockWatch | None,
) -> tuple[TrajectoryPoints, None]:
    """Evaluate the denoiser on noised data at every step; there is no run.

    Raises:
        InputError: the denoiser's output is no tensor, of another batch size or not finite.
        SettingsError: the samples have no data.
    """
    if samples.data is None:
        raise SettingsError("trajectory='noised' needs clean latents; give CalibrationSamples(data=...)")
    data = samples.data.to(samples.noise)
    timesteps = scheduler.timesteps(num_steps)
    # the run is asked only for the dtype in which this scheduler passes t
    run = scheduler.begin(num_steps, device=samples.noise.device)
    like = run.model_input(scheduler.initial(samples.noise, num_steps))[1]

    def noised(t: float) -> Tensor:
        at = torch.tensor(t, dtype=torch.float64)
        return float(scheduler.alpha(at)) * data + float(scheduler.sigma(at)) * samples.noise

    points = TrajectoryPoints()
    for t in timesteps:
        x, t_in = noised(t), torch.full_like(like, t)
        points.add(x, t_in, denoiser(x, t_in) if watch is None else watch.evaluate(denoiser, x, t_in))
    if has_next_point(scheduler, timesteps):
        t_in = _final_t(scheduler, like)
        points.add(noised(float(t_in[0])), t_in)
    return points, None


def _final_t(scheduler: Scheduler, like: Tensor) -> Tensor:
    """Return ``final_t`` as the denoiser is called with it; the caller has checked that there is one."""
    final = float("nan") if scheduler.final_t is None else scheduler.final_t
    if not like.is_floating_point() and final != int(final):
        raise RunError(
            f"scheduler {scheduler.name!r} passes t as {like.dtype} but has final_t = {final}; "
            "its adapter must give a whole number, or None"
        )
    return torch.full_like(like, final)
