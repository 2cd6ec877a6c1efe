"""How much of a latent is noise, from the t that the denoiser is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen

from cachepolicies.base.errors import InputError
from cachepolicies.contracts.adapter import Clock
from cachepolicies.contracts.scheduler import Scheduler

_TO_SCHEDULER: Mapping[Clock, Callable[[float], float]] = {
    "timestep": lambda t: t,
    "unit": lambda t: 1000.0 * t,
    "reversed-unit": lambda t: 1000.0 * (1.0 - t),
}

_SLACK = 1e-3
"""A level may lie beyond 0 or 1 by rounding in half precision."""


@frozen
class NoiseShare:
    """``sigma / (alpha + sigma)`` along a noise schedule: sigma itself in flow matching.

    Attributes:
        scheduler: that knows alpha and sigma.
        clock: how the denoiser is called with the scheduler's t.
    """

    scheduler: Scheduler
    clock: Clock

    @classmethod
    def of(cls, scheduler: Scheduler, clock: Clock) -> NoiseShare:
        """Return the share for a model; a scheduler whose own t is at most 1 is asked as the model is called."""
        return cls(scheduler, clock if scheduler.timesteps(1)[0] > 1.0 + _SLACK else "timestep")

    def at(self, t: float) -> float:
        """Return the share of the noise at t, from 0 to 1.

        Raises:
            InputError: the model counts from 0 to 1 and t is elsewhere.
        """
        if self.clock != "timestep" and not -_SLACK <= t <= 1.0 + _SLACK:
            raise InputError(
                f"the denoiser is called with t={t:g}, and its adapter says that this model counts t from 0 to 1; "
                "divide t by 1000 as its pipelines do, or give an adapter with clock='timestep'"
            )
        level = torch.tensor([_TO_SCHEDULER[self.clock](t)], dtype=torch.float64)
        alpha, sigma = self.scheduler.alpha(level).item(), self.scheduler.sigma(level).item()
        return sigma / (alpha + sigma)
