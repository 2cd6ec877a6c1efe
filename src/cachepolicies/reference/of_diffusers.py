"""diffusers' own SeaCache on a reference model, as a row of a comparison: enabled for a run, and counted inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from cachepolicies.contracts.denoiser import RunAwareDenoiser
from cachepolicies.contracts.scheduler import Scheduler

_SPATIAL = 4
"""Dimensions of one video (C, F, H, W)."""


class DiffusersSeaCache(RunAwareDenoiser):
    """A guided denoiser whose network has ``SeaCacheConfig`` enabled during a run.

    It tells diffusers what its pipelines would: the step, its share of noise, and how many steps there are. Rows of a
    batch decide together, as they do there.

    Attributes:
        evaluations: how often the network's blocks ran in the last run.
    """

    def __init__(self, denoiser: Any, scheduler: Scheduler, threshold: float, order: int = 1) -> None:
        """Take what is cached.

        Args:
            denoiser: with a diffusers transformer in its attribute ``network``.
            scheduler: whose noise levels these are.
            threshold: of the accumulated change.
            order: of the extrapolation of the residual, 0 or 1.
        """
        self.denoiser, self.scheduler = denoiser, scheduler
        self.threshold, self.order = threshold, order
        self.evaluations = 0
        self._timesteps: tuple[float, ...] = ()

    def run(self, timesteps: Sequence[float] | Tensor | None = None) -> AbstractContextManager[Any]:
        """Return a context in which the cache is enabled."""
        return self._enabled(() if timesteps is None else tuple(float(t) for t in timesteps))

    @contextmanager
    def _enabled(self, timesteps: tuple[float, ...]) -> Iterator[None]:
        from diffusers.hooks import SeaCacheConfig

        network = self.denoiser.network
        self._timesteps, self.evaluations = timesteps, 0
        inner = network.blocks[-1].attn1  # runs exactly when the stack does
        counting = inner.register_forward_pre_hook(lambda *_: self._count())
        network.enable_cache(
            SeaCacheConfig(threshold=self.threshold, residual_order=self.order, raw_vision_callback=_raw)
        )
        try:
            yield
        finally:
            network.disable_cache()
            counting.remove()

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, or let diffusers reuse."""
        level = float(t.reshape(-1)[0])
        if not self._timesteps:
            return self.denoiser(x, t, *args, **kwargs)
        step = min(range(len(self._timesteps)), key=lambda k: abs(self._timesteps[k] - level))
        at = torch.tensor([level], dtype=torch.float64)
        alpha, sigma = self.scheduler.alpha(at).item(), self.scheduler.sigma(at).item()
        context = self.denoiser.network.cache_context(
            "both", step_index=step, sigma=sigma / (alpha + sigma), num_inference_steps=len(self._timesteps)
        )
        with context:
            return self.denoiser(x, t, *args, **kwargs)

    def _count(self) -> None:
        self.evaluations += 1


def _raw(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the latents of every sample, with a time axis."""
    x = args[0] if args else kwargs["hidden_states"]
    return [row if row.ndim == _SPATIAL else row[:, None] for row in x]
