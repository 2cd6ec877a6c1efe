"""Euler steps on Karras' noise levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.schedulers._karras import Karras
from cachepolicies.schedulers._runs import SingleEvaluationRun
from cachepolicies.schedulers.base import SamplingRun


@frozen
class KarrasEuler(Karras):
    """Euler's method for the probability-flow ODE of `Karras`; k-diffusion's ``sample_euler`` without churn."""

    @property
    def name(self) -> str:
        """``"karras-euler"``."""
        return "karras-euler"

    @property
    def evaluations_per_step(self) -> int:
        """One."""
        return 1

    def begin(
        self,
        num_steps: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> SamplingRun:
        """Start a run; nothing is drawn from ``generator``, and ``device`` is that of x.

        Raises:
            SettingsError: as `timesteps`.
        """
        return _KarrasEulerRun(self.timesteps(num_steps))


class _KarrasEulerRun(SingleEvaluationRun):
    def __init__(self, sigmas: Sequence[float]) -> None:
        super().__init__(sigmas, torch.float32)
        self._sigmas = (*sigmas, 0.0)

    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        now, following = self._sigmas[index], self._sigmas[index + 1]
        return x + (following - now) * ((x - output) / now)
