"""The contract of a denoiser that wants to know more of a sampling than its calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from cachepolicies.contracts.declared import Contract
from cachepolicies.contracts.scheduler import Scheduler


class RunAwareDenoiser(Contract, declares=True):
    """A denoiser that is told where a run starts and ends; `cachepolicies.sample` asks for nothing else of any."""

    @abstractmethod
    def run(self, timesteps: Sequence[float] | Tensor | None = None) -> AbstractContextManager[Any]:
        """Return a context for one run that starts its steps at ``timesteps``."""

    def check_scheduler(self, scheduler: Scheduler) -> object:
        """Raise a `CachePoliciesError` if the denoiser cannot be sampled with this scheduler."""
        return None
