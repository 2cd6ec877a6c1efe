"""DDPM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.contracts.scheduler import PredictionType, SamplingRun
from cachepolicies.schedulers._native import GivenGenerator
from cachepolicies.schedulers._noise import Generators, as_generators, standard_normal
from cachepolicies.schedulers._runs import SingleEvaluationRun
from cachepolicies.schedulers._variance_preserving import VariancePreserving, predicted_data


@frozen
class DDPM(VariancePreserving):
    """DDPM ancestral sampling (Ho et al., arXiv 2006.11239, eqs. 6 and 7) on a `VariancePreserving` noise schedule.

    The variance is that of the posterior, ``fixed_small`` in diffusers' ``DDPMScheduler``, which it equals to float
    tolerance with ``clip_sample=False``. The last step adds no noise.
    """

    @property
    def name(self) -> str:
        """``"ddpm"``."""
        return "ddpm"

    @property
    def stochastic(self) -> bool:
        """Yes."""
        return True

    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        generators = as_generators(generator)
        return _DDPMRun(self.timesteps(num_steps), self.alpha_bars(num_steps), self.prediction_type, generators)


class _DDPMRun(SingleEvaluationRun):
    def __init__(
        self,
        timesteps: Sequence[float],
        alpha_bars: Sequence[float],
        prediction_type: PredictionType,
        generators: Generators,
    ) -> None:
        super().__init__(timesteps, torch.int64)
        self._alpha_bars = alpha_bars
        self._prediction_type = prediction_type
        self._generators = generators

    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        now, following = self._alpha_bars[index], self._alpha_bars[index + 1]
        alpha = now / following  # of this step, which may span several trained ones
        beta = 1 - alpha
        data = predicted_data(output, x, math.sqrt(now), math.sqrt(1 - now), self._prediction_type)
        mean = math.sqrt(following) * beta / (1 - now) * data + math.sqrt(alpha) * (1 - following) / (1 - now) * x
        variance = (1 - following) / (1 - now) * beta
        if variance == 0:
            return mean
        return mean + math.sqrt(variance) * standard_normal(x, self._generators)
