"""What the native samplers share: a run with one evaluation a step, and the checks of its arguments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.contracts.scheduler import SamplingRun


def check_num_steps(num_steps: object) -> int:
    """Return a step count as an ``int``.

    Raises:
        SettingsError: it is not a positive integer.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise SettingsError(f"num_steps must be a positive integer, got {num_steps!r}")
    return int(num_steps)


def check_decreasing(timesteps: Sequence[float], owner: str) -> tuple[float, ...]:
    """Return the timesteps of a run.

    Raises:
        SettingsError: they do not decrease strictly, so that t would not say which step it is.
    """
    for i, (before, after) in enumerate(pairwise(timesteps)):
        if not after < before:
            raise SettingsError(
                f"{owner}: with {len(timesteps)} steps t does not decrease from step {i} ({before:g}) to step {i + 1} "
                f"({after:g}); use fewer steps or another spacing"
            )
    return tuple(timesteps)


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a sampler's arithmetic: that of x, but at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def batched_t(t: float, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return t as a tensor ``(B,)`` on the device of x ``(B, ...)``."""
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)


def finished_error(evaluations: int) -> RunError:
    """Return the error for a run that is asked for more evaluations than it has."""
    return RunError(
        f"the sampling run has finished: all of its {evaluations} evaluations were taken; start another with begin()"
    )


class SingleEvaluationRun(SamplingRun):
    """A run of a sampler with one evaluation a step and a model input that is the latent itself.

    Args:
        timesteps: t of every step, as the denoiser sees it.
        dtype: dtype of the t that the denoiser is given.
    """

    def __init__(self, timesteps: Sequence[float], dtype: torch.dtype) -> None:
        self._timesteps = tuple(timesteps)
        self._dtype = dtype
        self._index = 0

    @property
    def finished(self) -> bool:
        """Whether every step was taken."""
        return self._index == len(self._timesteps)

    @property
    def t(self) -> float:
        """The t of the next step.

        Raises:
            RunError: the run has finished.
        """
        if self.finished:
            raise finished_error(len(self._timesteps))
        return self._timesteps[self._index]

    @property
    def stage(self) -> int:
        """Always 0."""
        return 0

    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x ``(B, ...)`` itself and t ``(B,)``."""
        return x, batched_t(self.t, x, self._dtype)

    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        """Take one step; the arithmetic is in float32 or better, the result ``(B, ...)`` has the dtype of x.

        Raises:
            RunError: the run has finished.
        """
        if self.finished:
            raise finished_error(len(self._timesteps))
        dtype = working_dtype(x)
        following = self.step(self._index, output.to(dtype), x.to(dtype))
        self._index += 1
        return following.to(x.dtype)

    @abstractmethod
    def step(self, index: int, output: Tensor, x: Tensor) -> Tensor:
        """Return the latent after step ``index``; all tensors are ``(B, ...)`` in the working dtype."""
