"""What one output of the denoiser does to everything that follows it in a run, without evaluating a denoiser."""

from __future__ import annotations

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.scheduler import Scheduler

_TOLERANCE = 1e-3
"""Largest deviation from linearity, relative to the largest response: some samplers round to float32 and draw noise."""

_MULTISTEP = 1e-2
"""Largest part of two rows that are not multiples of each other by rounding."""

_SIZES = (1e4, -1.0)
"""Of the two impulses that are compared; the first is large, so that it meets every clip and drowns rounded noise."""


@frozen(eq=False)
class ImpulseResponse:
    """The linear response of a sampler: how its latents depend on the denoiser's outputs.

    ``dx_{j+1} = sum_{i <= j} c[j, i] dy_i``, with x_j what the denoiser is given at evaluation j, the sample at the
    end, and y_j its output. For a sampler ``x_{j+1} = A_j x_j + B_j y_j`` that is ``c[j, i] = A_j ... A_{i+1} B_i``; a
    multistep sampler has other entries below the diagonal.

    Attributes:
        t: t of the M evaluations of a run.
        first: for every step, which of them is its first; they are all if the sampler evaluates once a step.
        c: ``(M, M)`` float64, lower triangular. Row j is x_{j+1}, column i the output that changed by 1.
    """

    t: tuple[float, ...]
    first: tuple[int, ...]
    c: NDArray[np.float64]

    @property
    def multistep(self) -> bool:
        """Whether a step uses outputs of steps before it.

        Of a sampler ``x_{j+1} = A_j x_j + B_j y_j`` a row below the diagonal is A_j times the row before.
        """
        for j in range(1, len(self.t)):
            now, before = self.c[j, :j], self.c[j - 1, :j]
            size = float(np.abs(self.c[j]).max() * np.abs(before).max())
            if np.abs(np.outer(now, before) - np.outer(before, now)).max() > _MULTISTEP * size:
                return True
        return False

    def bound(self, alpha_x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bound the change of the sample per change of the output at the first evaluation of every step.

        From ``|dx_{j+1}| <= sum_i |c[j, i]| |dy_i|`` and ``|dy_i| <= alpha_x(t_i) |dx_i|`` with ``|dy_k| = 1``. For a
        sampler ``x_{j+1} = A_j x_j + B_j y_j`` it is ``|B_k| prod_{j > k} (|A_j| + |B_j| alpha_x(t_j))``.

        Args:
            alpha_x: ``(M,)`` sensitivity of the output to x at every evaluation, >= 0.

        Returns:
            ``(N,)`` float64, one value a step; infinite where it overflows.
        """
        size = np.abs(self.c)
        last = len(self.t) - 1
        bounds = np.empty(len(self.first))
        with np.errstate(over="ignore"):
            for step, k in enumerate(self.first):
                output = np.zeros(len(self.t))
                output[k] = 1.0
                for j in range(k, last):
                    output[j + 1] = alpha_x[j + 1] * (size[j, k : j + 1] @ output[k : j + 1])
                bounds[step] = size[last, k:] @ output[k:]
        return bounds


def impulse_response(scheduler: Scheduler, num_steps: int) -> ImpulseResponse:
    """Run a sampler once on a unit impulse at every evaluation, all of them rows of one batch.

    Everything else is zero; the noise of a stochastic sampler is the same in all rows and cancels. In float64, except
    where a sampler of diffusers computes in float32 all the same: then to its rounding.

    Args:
        scheduler: the scheduler.
        num_steps: N.

    Raises:
        SettingsError: the scheduler refuses the number of steps; or the sampler is not linear in the outputs, as with
            diffusers' ``clip_sample`` or ``thresholding``.
    """
    responses = []
    for size in _SIZES:
        t, first, latents = _latents_of_impulses(scheduler, num_steps, size)
        responses.append((latents[:, 1:] - latents[:, :1]) / size)
    c, other = responses
    largest = float(np.abs(c).max())
    deviation = float(np.abs(c - other).max())
    if not deviation <= _TOLERANCE * largest:  # also where one of them is not a number
        raise SettingsError(
            f"scheduler {scheduler.name!r} is not linear in the denoiser's outputs: impulses of {_SIZES[0]:g} and "
            f"{_SIZES[1]:g} have responses per unit that differ by {deviation:g}, the largest being {largest:g}; turn "
            "clip_sample and thresholding off, or use measured weights"
        )
    return ImpulseResponse(t, first, c)


def _latents_of_impulses(
    scheduler: Scheduler, num_steps: int, size: float
) -> tuple[tuple[float, ...], tuple[int, ...], NDArray[np.float64]]:
    """Return t of every evaluation, the first one of every step, and the latents.

    The latents are ``(M, 1 + M)``: row j is what comes after evaluation j, column 0 without an impulse.
    """
    rows = 1 + scheduler.evaluations_per_step * num_steps  # at least one for every evaluation
    run = scheduler.begin(num_steps, generator=[torch.Generator().manual_seed(0) for _ in range(rows)])
    x = torch.zeros(rows, 1, 1, 1, dtype=torch.float64)  # with channels and space, as some samplers expect
    t: list[float] = []
    first: list[int] = []
    latents: list[Tensor] = []
    while not run.finished:
        x_in, t_in = run.model_input(x)
        if t:
            latents.append(x_in.double().flatten())
        if run.stage == 0:
            first.append(len(t))
        t.append(float(t_in[0]))
        output = torch.zeros_like(x)
        output[len(t)] = size
        x = run.advance(output, x)
    latents.append(x.double().flatten())
    return tuple(t), tuple(first), torch.stack(latents).numpy()[:, : len(t) + 1]
