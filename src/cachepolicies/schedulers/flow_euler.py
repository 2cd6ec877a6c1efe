"""Flow matching with Euler steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.settings import plain, positive, positive_int
from cachepolicies.contracts.scheduler import PredictionType, SamplingRun
from cachepolicies.schedulers._native import GivenGenerator, NativeScheduler
from cachepolicies.schedulers._runs import SingleEvaluationRun, check_decreasing, check_num_steps


@frozen
class FlowEuler(NativeScheduler):
    """Rectified flow, ``x = (1 - sigma) * data + sigma * noise`` with ``t = num_train_timesteps * sigma``, by Euler.

    The denoiser returns the velocity ``noise - data``; a step is ``x + (sigma_next - sigma) * velocity``
    (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747). The noise levels are those of diffusers'
    ``FlowMatchEulerDiscreteScheduler.set_timesteps`` with the same shift, so that one profile serves both: evenly
    spaced from 1 to the shifted ``1 / num_train_timesteps``, then shifted by
    ``shift * s / (1 + (shift - 1) * s)`` (Esser et al., arXiv 2403.03206, eq. 23), then 0.

    Attributes:
        shift: 1 for even steps; larger values spend more of the steps at high noise.
        num_train_timesteps: t at sigma = 1.
    """

    shift: float = field(default=1.0, converter=plain, validator=positive)
    num_train_timesteps: int = field(default=1000, converter=plain, validator=positive_int)

    @property
    def name(self) -> str:
        """``"flow-euler"``."""
        return "flow-euler"

    @property
    def family(self) -> str:
        """``"flow"``."""
        return "flow"

    @property
    def prediction_type(self) -> PredictionType:
        """``"velocity"``."""
        return "velocity"

    @property
    def final_t(self) -> float | None:
        """0: the velocity is defined at the data."""
        return 0.0

    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        """Return t of every step: ``num_train_timesteps`` times sigma, rounded to float32 as diffusers does.

        Raises:
            SettingsError: ``num_steps`` is not a positive integer, or so many that float32 cannot tell them apart.
        """
        sigmas = self._sigmas(check_num_steps(num_steps))
        return check_decreasing((sigmas * self.num_train_timesteps).tolist(), self.name)

    def alpha(self, t: Tensor) -> Tensor:
        """Return ``1 - t / num_train_timesteps``, float64."""
        return 1.0 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``t / num_train_timesteps``, float64."""
        return t.double() / self.num_train_timesteps

    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        timesteps = self.timesteps(num_steps)
        return _FlowEulerRun(timesteps, (*self._sigmas(num_steps).tolist(), 0.0))

    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        """Return the noise ``(B, ...)`` itself: the first sigma is 1."""
        return noise

    def _sigmas(self, num_steps: int) -> Tensor:
        lowest = self._shifted(torch.tensor(1 / self.num_train_timesteps, dtype=torch.float32)).item()
        # diffusers shifts the lower end twice: once when it is made, once with all the others. Models in use were
        # sampled so, and a profile has to meet the same t.
        even = np.linspace(self.num_train_timesteps, lowest * self.num_train_timesteps, num_steps)
        return self._shifted(torch.from_numpy(even / self.num_train_timesteps)).to(torch.float32)

    def _shifted(self, sigma: Tensor) -> Tensor:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


class _FlowEulerRun(SingleEvaluationRun):
    def __init__(self, timesteps: Sequence[float], sigmas: Sequence[float]) -> None:
        super().__init__(timesteps, torch.float32)
        self._sigmas = sigmas

    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        return x + (self._sigmas[index + 1] - self._sigmas[index]) * output
