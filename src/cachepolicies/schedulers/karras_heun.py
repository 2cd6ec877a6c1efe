"""Heun steps on Karras' noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.contracts.scheduler import SamplingRun
from cachepolicies.schedulers._karras import Karras
from cachepolicies.schedulers._native import GivenGenerator
from cachepolicies.schedulers._runs import batched_t, finished_error, working_dtype


@frozen
class KarrasHeun(Karras):
    """Heun's second-order method for the ODE of `Karras` (2206.00364, algorithm 1; k-diffusion's ``sample_heun``).

    A step evaluates at its sigma and, at the Euler prediction, at the next one; the last step, which ends at 0, is an
    Euler step with one evaluation: ``2 * num_steps - 1`` in all.
    """

    @property
    def name(self) -> str:
        """``"karras-heun"``."""
        return "karras-heun"

    @property
    def evaluations_per_step(self) -> int:
        """Two."""
        return 2

    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        return _KarrasHeunRun(self.timesteps(num_steps))


class _KarrasHeunRun(SamplingRun):
    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = (*sigmas, 0.0)
        self._steps = len(sigmas)
        self._index = 0
        # The latent and the slope at the start of the step, while its second evaluation is due.
        self._start: tuple[Tensor, Tensor] | None = None

    @property
    def finished(self) -> bool:
        return self._index == self._steps

    @property
    def t(self) -> float:
        if self.finished:
            raise finished_error(2 * self._steps - 1)
        return self._sigmas[self._index + self.stage]

    @property
    def stage(self) -> int:
        return 0 if self._start is None else 1

    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, batched_t(self.t, x, torch.float32)

    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        dtype = working_dtype(x)
        slope = (x.to(dtype) - output.to(dtype)) / self.t
        change = self._sigmas[self._index + 1] - self._sigmas[self._index]
        if self._start is None:
            start = x.to(dtype)
            if self._index < self._steps - 1:
                self._start = (start, slope)
                return (start + change * slope).to(x.dtype)
        else:
            start, first = self._start
            slope = (first + slope) / 2
            self._start = None
        self._index += 1
        return (start + change * slope).to(x.dtype)
