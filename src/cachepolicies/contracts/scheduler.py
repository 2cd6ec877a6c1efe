"""The contract of a scheduler: which noise levels a run visits and how the sampler moves between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

PredictionType = Literal["velocity", "noise", "x0", "v"]
"""What the denoiser returns for ``x = alpha * data + sigma * noise``.

``velocity`` is the flow-matching velocity ``noise - data``; ``noise`` is the noise; ``x0`` is the data; ``v`` is
``alpha * noise - sigma * data`` of a variance-preserving schedule.
"""

SamplerTime = Literal["t", "sigma", "log-snr"]
"""The variable that a sampler steps in; see `Scheduler.time`."""


class SamplingRun(ABC):
    """One sampling in progress: says where the denoiser is evaluated next and takes what it returned.

    The interface is that of reverse communication: ``point`` asks, ``advance`` answers. One pass through the pair is
    one evaluation of the denoiser, so a Heun step takes two passes.
    """

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the last evaluation was taken and ``x`` is the sample."""

    @property
    @abstractmethod
    def t(self) -> float:
        """The t (or sigma) of the next evaluation, in the units the denoiser is called with."""

    @property
    @abstractmethod
    def stage(self) -> int:
        """0 for the first evaluation of a step, 1 for the second (Heun)."""

    @abstractmethod
    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the denoiser is called with at the next evaluation.

        Args:
            x: ``(B, ...)`` the sampler's latent.

        Returns:
            The scaled latent ``(B, ...)`` and t as a tensor ``(B,)``, float32 or int64 as the scheduler defines it.
        """

    @abstractmethod
    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        """Take the denoiser's output at ``model_input(x)`` and return the latent of the next evaluation.

        Args:
            output: ``(B, ...)`` what the denoiser returned.
            x: ``(B, ...)`` the latent that ``model_input`` was given.

        Returns:
            ``(B, ...)`` the next latent; after the last evaluation, the sample.
        """


class Scheduler(ABC):
    """A noise schedule together with the sampler that runs on it. Frozen settings; a run's state is a `SamplingRun`.

    The forward process is ``x = alpha(t) * data + sigma(t) * noise`` *in the denoiser's own input scale*.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Registered name, or the class name of the diffusers scheduler that is adapted."""

    @property
    @abstractmethod
    def family(self) -> str:
        """Noise-schedule family: ``"flow"``, ``"vp"`` or ``"edm"``. A profile serves its own family only."""

    @property
    def time(self) -> SamplerTime:
        """What the sampler steps in, in which outputs are smooth enough to extrapolate; ``"sigma"`` unless it says so.

        ``"sigma"`` is sigma for the family ``flow`` and sigma / alpha for ``vp`` and ``edm``: Euler, Heun and DDIM
        integrate an ODE in it, one step a straight line. ``"log-snr"`` is log(alpha^2 / sigma^2).
        """
        return "sigma"

    @property
    @abstractmethod
    def prediction_type(self) -> PredictionType:
        """What the denoiser returns; see `PredictionType`."""

    @property
    @abstractmethod
    def evaluations_per_step(self) -> int:
        """Denoiser evaluations in one full step: 1, or 2 for Heun (whose last step takes one)."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether a step draws noise."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The settings as plain JSON values, for a profile's provenance."""

    @abstractmethod
    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        """Return the t of the first evaluation of every step, strictly decreasing, ``num_steps`` of them.

        Raises:
            SettingsError: ``num_steps`` is not a positive integer.
        """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the data at t, same shape as t, float64."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise at t, same shape as t, float64."""

    @property
    @abstractmethod
    def final_t(self) -> float | None:
        """The t at which the sample is reached, if the denoiser can be evaluated there; else ``None``."""

    @abstractmethod
    def begin(
        self,
        num_steps: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> SamplingRun:
        """Start a run of ``num_steps`` steps; ``generator`` is drawn from by stochastic samplers only.

        A sequence holds one generator a sample, so that a sample does not depend on its batch.
        """

    @abstractmethod
    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        """Scale standard normal noise ``(B, ...)`` to the sampler's first latent."""
