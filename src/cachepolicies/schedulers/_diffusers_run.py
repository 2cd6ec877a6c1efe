"""A sampling run on a scheduler of diffusers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cachepolicies.contracts.scheduler import SamplingRun
from cachepolicies.schedulers._noise import Generators, check_one_per_sample
from cachepolicies.schedulers._runs import batched_t, finished_error
from cachepolicies.schedulers.diffusers_traits import DiffusersTraits


class DiffusersRun(SamplingRun):
    """One run of a diffusers scheduler that nobody else holds.

    Args:
        scheduler: the scheduler, after ``set_timesteps``.
        traits: of its class.
        stochastic: whether its steps draw noise.
        generators: what they draw it from.
    """

    def __init__(self, scheduler: Any, traits: DiffusersTraits, stochastic: bool, generators: Generators) -> None:
        self._scheduler = scheduler
        self._traits = traits
        self._stochastic = stochastic
        self._generators = generators
        self._index = 0
        self._previous_data: Tensor | None = None

    @property
    def finished(self) -> bool:
        return self._index == len(self._scheduler.timesteps)

    @property
    def t(self) -> float:
        return float(self._timestep())

    @property
    def stage(self) -> int:
        # Heun's list is t0, t1, t1, t2, t2, ...: odd entries are the second evaluation of a step.
        return self._index % self._traits.evaluations_per_step

    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self._timestep()
        scale = getattr(self._scheduler, "scale_model_input", None)
        scaled: Tensor = x if scale is None else scale(x, t)
        return scaled, batched_t(t.item(), x, t.dtype)

    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        t = self._timestep()
        if self._stochastic:
            check_one_per_sample(self._generators, x.shape[0])
        following = self._step(output, t, x)
        self._index += 1
        return following.to(x.dtype)

    def _timestep(self) -> Tensor:
        if self.finished:
            raise finished_error(len(self._scheduler.timesteps))
        t: Tensor = self._scheduler.timesteps[self._index]
        return t

    def _step(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        noise = {"generator": self._generators} if self._stochastic else {}
        following: Tensor
        if self._traits.hands_data_on:
            back = self._scheduler.timesteps[self._index - 1] if self._index else None
            following, self._previous_data = self._scheduler.step(
                output, self._previous_data, t, back, x, return_dict=False, **noise
            )
            return following
        following = self._scheduler.step(output, t, x, return_dict=False, **noise)[0]
        return following
