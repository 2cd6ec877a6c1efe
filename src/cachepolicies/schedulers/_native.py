"""What the schedulers of this library have in common, beside those that are adapted from others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from attrs import frozen

from cachepolicies.contracts.scheduler import SamplingRun, Scheduler

GivenGenerator: TypeAlias = "torch.Generator | Sequence[torch.Generator] | None"
"""What a run may be given to draw its noise from."""


@frozen
class NativeScheduler(Scheduler):
    """Deterministic, with one evaluation a step, unless a class says otherwise; its attributes are its settings."""

    @property
    def evaluations_per_step(self) -> int:
        """One."""
        return 1

    @property
    def stochastic(self) -> bool:
        """No."""
        return False

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings."""
        return attrs.asdict(self)

    def begin(
        self,
        num_steps: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> SamplingRun:
        """Start a run; ``generator`` is drawn from if it is stochastic, and ``device`` is that of x.

        Raises:
            SettingsError: as `timesteps`.
            InputError: the run draws noise, and ``generator`` is neither a generator nor a list of them.
        """
        return self._new_run(num_steps, generator)

    @abstractmethod
    def _new_run(self, num_steps: int, generator: GivenGenerator) -> SamplingRun:
        """Return a run of this many steps."""
