"""The variance-preserving noise schedule that DDIM and DDPM share."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import non_negative_int, one_of, plain, positive, positive_int
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.schedulers._native import NativeScheduler
from cachepolicies.schedulers._runs import check_decreasing, check_num_steps
from cachepolicies.schedulers._tables import interpolate

BetaSchedule = Literal["linear", "scaled_linear", "cosine"]
Spacing = Literal["leading", "trailing"]

MOST_TRAINED = 100_000
"""Trained noise levels that a table is made for."""


@frozen
class VariancePreserving(NativeScheduler):
    """``x = sqrt(abar_t) * data + sqrt(1 - abar_t) * noise`` with integer t (Ho et al., arXiv 2006.11239, eq. 4).

    abar is the running product of ``1 - beta``, here in float64. The names and formulas of the settings follow
    diffusers' ``DDIMScheduler``.

    Attributes:
        prediction_type: ``"noise"``, ``"x0"`` or ``"v"``.
        beta_schedule: ``"linear"``; ``"scaled_linear"``, linear in the square root (latent diffusion);
            ``"cosine"`` (Nichol and Dhariwal, arXiv 2102.09672, eq. 17), which takes no beta_start and beta_end.
        beta_start: first beta.
        beta_end: last beta.
        num_train_timesteps: number of betas T; t goes from 0 to T - 1.
        spacing: ``"leading"``: t = i * (T // num_steps) + steps_offset; ``"trailing"``: t = round(T - i * T /
            num_steps) - 1, which starts at T - 1 (Lin et al., arXiv 2305.08891, table 2).
        steps_offset: added to every t of the leading spacing.
    """

    prediction_type: PredictionType = field(default="noise", validator=one_of("noise", "x0", "v"))
    beta_schedule: BetaSchedule = field(default="linear", validator=one_of("linear", "scaled_linear", "cosine"))
    beta_start: float = field(default=0.0001, converter=plain, validator=positive)
    beta_end: float = field(default=0.02, converter=plain, validator=positive)
    num_train_timesteps: int = field(default=1000, converter=plain, validator=positive_int)
    spacing: Spacing = field(default="leading", validator=one_of("leading", "trailing"))
    steps_offset: int = field(default=0, converter=plain, validator=non_negative_int)

    def __attrs_post_init__(self) -> None:
        if not self.beta_start <= self.beta_end < 1:
            raise SettingsError(
                f"{type(self).__name__}: beta_start={self.beta_start!r} and beta_end={self.beta_end!r} "
                "must satisfy 0 < beta_start <= beta_end < 1"
            )
        if self.num_train_timesteps > MOST_TRAINED:
            raise SettingsError(
                f"{type(self).__name__}: num_train_timesteps={self.num_train_timesteps} is more than {MOST_TRAINED}; a "
                "table has an entry for each"
            )

    @property
    def family(self) -> str:
        """``"vp"``."""
        return "vp"

    @property
    def final_t(self) -> float | None:
        """``None``: the sample lies beyond t = 0, where there is still some noise."""
        return None

    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        """Return t of every step, whole numbers.

        Raises:
            SettingsError: ``num_steps`` is not an integer from 1 to T, or steps_offset pushes t beyond T - 1.
        """
        number = check_num_steps(num_steps)
        total = self.num_train_timesteps
        if number > total:
            raise SettingsError(f"{self.name}: num_steps={number} exceeds num_train_timesteps={total}; use fewer steps")
        if self.spacing == "leading":
            steps = [float(i * (total // number) + self.steps_offset) for i in reversed(range(number))]
        else:
            steps = [float(round(total - i * (total / number)) - 1) for i in range(number)]
        if steps[0] > total - 1:
            raise SettingsError(
                f"{self.name}: the first t of {number} steps is {steps[0]:g}, beyond the last trained t, {total - 1}; "
                f"lower steps_offset={self.steps_offset} or num_steps"
            )
        return check_decreasing(steps, self.name)

    def alpha(self, t: Tensor) -> Tensor:
        """Return ``sqrt(abar)`` at t, float64; between whole numbers abar is interpolated linearly."""
        return self._alpha_bar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Return ``sqrt(1 - abar)`` at t, float64; between whole numbers abar is interpolated linearly."""
        return (1.0 - self._alpha_bar(t)).sqrt()

    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        """Return the noise ``(B, ...)`` itself: the variance is 1 at every t."""
        return noise

    def alpha_bars(self, num_steps: int) -> tuple[float, ...]:
        """Return abar at every t of a run, then 1 for the sample: ``num_steps + 1`` values.

        Raises:
            SettingsError: as `timesteps`.
        """
        t = torch.tensor(self.timesteps(num_steps), dtype=torch.float64)
        return (*self._alpha_bar(t).tolist(), 1.0)

    def _alpha_bar(self, t: Tensor) -> Tensor:
        table = _alpha_bar_table(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps)
        return interpolate(table, t)


@lru_cache(maxsize=16)
def _alpha_bar_table(schedule: BetaSchedule, start: float, end: float, total: int) -> Tensor:
    if schedule == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), total, dtype=torch.float64) ** 2
    else:
        # Eq. 17 of arXiv 2102.09672 with its offset s = 0.008 and its clip of beta at 0.999.
        time = torch.arange(total + 1, dtype=torch.float64) / total
        level = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def predicted_data(output: Tensor, x: Tensor, alpha: float, sigma: float, prediction_type: PredictionType) -> Tensor:
    """Return the data ``(B, ...)`` that the denoiser's output implies at ``x = alpha * data + sigma * noise``."""
    if prediction_type == "noise":
        return (x - sigma * output) / alpha
    if prediction_type == "v":
        return alpha * x - sigma * output
    return output


def predicted_noise(output: Tensor, x: Tensor, alpha: float, sigma: float, prediction_type: PredictionType) -> Tensor:
    """Return the noise ``(B, ...)`` that the denoiser's output implies at ``x = alpha * data + sigma * noise``."""
    if prediction_type == "noise":
        return output
    if prediction_type == "v":
        return alpha * output + sigma * x
    return (x - alpha * output) / sigma
