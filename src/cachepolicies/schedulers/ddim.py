"""DDIM."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.settings import fraction, plain
from cachepolicies.contracts.scheduler import PredictionType, SamplingRun
from cachepolicies.schedulers._native import GivenGenerator
from cachepolicies.schedulers._noise import Generators, as_generators, standard_normal
from cachepolicies.schedulers._runs import SingleEvaluationRun
from cachepolicies.schedulers._variance_preserving import VariancePreserving, predicted_data, predicted_noise


@frozen
class DDIM(VariancePreserving):
    """DDIM (Song et al., arXiv 2010.02502, eqs. 12 and 16) on a `VariancePreserving` noise schedule.

    Equal to diffusers' ``DDIMScheduler(clip_sample=False)`` to float tolerance. One difference: where ``num_steps``
    does not divide T, diffusers' trailing spacing steps to ``t - T // num_steps``, which is not the t of its next
    evaluation; here every step ends where the next one starts.

    Attributes:
        eta: amount of noise in a step; 0 is deterministic, 1 has the variance of DDPM.
    """

    eta: float = field(default=0.0, converter=plain, validator=fraction)

    @property
    def name(self) -> str:
        """``"ddim"``."""
        return "ddim"

    @property
    def stochastic(self) -> bool:
        """Whether eta is above 0."""
        return self.eta > 0

    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        generators = as_generators(generator)
        return _DDIMRun(
            self.timesteps(num_steps), self.alpha_bars(num_steps), self.prediction_type, self.eta, generators
        )


class _DDIMRun(SingleEvaluationRun):
    def __init__(
        self,
        timesteps: Sequence[float],
        alpha_bars: Sequence[float],
        prediction_type: PredictionType,
        eta: float,
        generators: Generators,
    ) -> None:
        super().__init__(timesteps, torch.int64)
        self._alpha_bars = alpha_bars
        self._prediction_type = prediction_type
        self._eta = eta
        self._generators = generators

    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        now, following = self._alpha_bars[index], self._alpha_bars[index + 1]
        at = (math.sqrt(now), math.sqrt(1 - now), self._prediction_type)
        variance = self._eta**2 * (1 - following) / (1 - now) * (1 - now / following)
        mean = math.sqrt(following) * predicted_data(output, x, *at)
        mean = mean + math.sqrt(max(1 - following - variance, 0.0)) * predicted_noise(output, x, *at)
        if variance == 0:
            return mean
        return mean + math.sqrt(variance) * standard_normal(x, self._generators)
