"""Euler steps on Karras' noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.contracts.scheduler import SamplingRun
from cachepolicies.schedulers._karras import Karras
from cachepolicies.schedulers._native import GivenGenerator
from cachepolicies.schedulers._runs import SingleEvaluationRun


@frozen
class KarrasEuler(Karras):
    """Euler's method for the probability-flow ODE of `Karras`; k-diffusion's ``sample_euler`` without churn."""

    @property
    def name(self) -> str:
        """``"karras-euler"``."""
        return "karras-euler"

    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        return _KarrasEulerRun(self.timesteps(num_steps))


class _KarrasEulerRun(SingleEvaluationRun):
    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__(sigmas, torch.float32)
        self._sigmas = (*sigmas, 0.0)

    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        now, following = self._sigmas[index], self._sigmas[index + 1]
        return x + (following - now) * ((x - output) / now)
