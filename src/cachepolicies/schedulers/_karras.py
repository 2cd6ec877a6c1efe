"""The noise levels that the Karras samplers share."""

from __future__ import annotations

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import plain, positive
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.schedulers._native import NativeScheduler
from cachepolicies.schedulers._runs import check_decreasing, check_num_steps


@frozen
class Karras(NativeScheduler):
    """``x = data + sigma * noise`` with ``t = sigma``, in the convention of k-diffusion (Karras et al. 2206.00364).

    The denoiser is called as ``model(x, sigma)`` with the unscaled x and **returns the data** (k-diffusion's
    ``denoised``); any input scaling is inside it. The levels are those of eq. 5, k-diffusion's
    ``get_sigmas_karras``: even in ``sigma ** (1 / rho)`` from sigma_max to sigma_min, then 0. The denoiser is never
    evaluated at 0.

    Attributes:
        sigma_min: the last level with an evaluation.
        sigma_max: the first level.
        rho: larger values put more of the levels at low noise.
    """

    sigma_min: float = field(default=0.002, converter=plain, validator=positive)
    sigma_max: float = field(default=80.0, converter=plain, validator=positive)
    rho: float = field(default=7.0, converter=plain, validator=positive)

    def __attrs_post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise SettingsError(
                f"{type(self).__name__}: sigma_min={self.sigma_min!r} must be below sigma_max={self.sigma_max!r}"
            )

    @property
    def family(self) -> str:
        """``"edm"``."""
        return "edm"

    @property
    def prediction_type(self) -> PredictionType:
        """``"x0"``."""
        return "x0"

    @property
    def final_t(self) -> float | None:
        """``None``: a denoiser in this convention need not be defined at sigma = 0."""
        return None

    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        """Return sigma of every step, rounded to float32, the dtype the denoiser is given.

        Raises:
            SettingsError: ``num_steps`` is not a positive integer, or so many that float32 cannot tell them apart.
        """
        ramp = torch.linspace(0, 1, check_num_steps(num_steps), dtype=torch.float64)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas = (high + ramp * (low - high)) ** self.rho
        return check_decreasing(sigmas.to(torch.float32).tolist(), self.name)

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1, float64."""
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        """Return t, float64."""
        return t.double()

    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        """Return the noise ``(B, ...)`` times the first sigma."""
        return noise * self.timesteps(num_steps)[0]
