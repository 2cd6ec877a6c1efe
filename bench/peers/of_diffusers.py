"""diffusers' own caches, each swept over its settings, enabled anew on a fresh network for every sample."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from cases import Case
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.cache_utils import CacheMixin
from entry import Entry, Run
from stepping import executed, flops_of, stepped
from torch import Tensor

logging.getLogger("diffusers").setLevel(logging.ERROR)


def _enabled(method: str, setting: str, config: Callable[[Case, Callable[[], float]], Any]) -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        workload = case.fresh()
        guided: Any = workload.denoiser
        network, now = guided.network, [0.0]
        whole = flops_of(workload, seeds[0])

        def one(seed: int) -> Tensor:
            network.enable_cache(config(case, lambda: now[0]))
            try:
                return stepped(workload, seed, now, network.cache_context)
            finally:
                network.disable_cache()

        with _cacheable(network):
            pictures, flops = executed(one, seeds)
        return Run(pictures, flops / whole)

    return Entry(method, setting, run)


@contextlib.contextmanager
def _cacheable(network: Any) -> Iterator[None]:
    """Give a transformer the cache methods that its class in diffusers lacks (DiT)."""
    kind = type(network)
    if not isinstance(network, CacheMixin):
        network.__class__ = type(kind.__name__, (kind, CacheMixin), {})
    try:
        yield
    finally:
        network.__class__ = kind


def _raw_images(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    x = args[0] if args else kwargs["hidden_states"]
    return [row if row.ndim == 4 else row[:, None] for row in x]


def entries() -> list[Entry]:
    """Return diffusers' caches, swept."""
    found = []
    for order in (0, 1):
        for most, thresholds in ((2, (0.1, 0.25, 0.5, 1.0, 2.0)), (0, (0.25, 0.5, 1.0, 2.0))):
            for threshold in thresholds:

                def sea(case: Case, now: Any, th: float = threshold, o: int = order, m: int = most) -> Any:
                    return SeaCacheConfig(
                        threshold=th, residual_order=o, max_consecutive_cached=m, raw_vision_callback=_raw_images
                    )

                found.append(_enabled("diffusers SeaCache", f"threshold={threshold},order={order},most={most}", sea))
    for interval in (2, 3, 4, 5, 6):
        for order in (1, 2):

            def taylor(case: Case, now: Any, i: int = interval, o: int = order) -> Any:
                return TaylorSeerCacheConfig(
                    cache_interval=i,
                    max_order=o,
                    disable_cache_before_step=3,
                    taylor_factors_dtype=torch.float32,
                    # every attention and feed-forward module: its own patterns know none of these two classes
                    cache_identifiers=[r"(transformer_)?blocks\.\d+\.(attn1|attn2|ffn?)"],
                )

            found.append(_enabled("diffusers TaylorSeer", f"interval={interval},order={order}", taylor))
    for threshold in (0.02, 0.06, 0.12, 0.24, 0.5):
        for most in (2, 4, 8):

            def mag(case: Case, now: Any, th: float = threshold, m: int = most) -> Any:
                ratios = case.profile.tables["magnitude_ratio"].mean(axis=1).tolist()
                return MagCacheConfig(
                    threshold=th, max_skip_steps=m, retention_ratio=0.1, num_inference_steps=50, mag_ratios=ratios
                )

            found.append(_enabled("diffusers MagCache", f"threshold={threshold},most={most}", mag))
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):

        def first_block(case: Case, now: Any, th: float = threshold) -> Any:
            return FirstBlockCacheConfig(threshold=th)

        found.append(_enabled("diffusers FirstBlockCache", f"threshold={threshold}", first_block))
    for every in (2, 4, 8):

        def broadcast(case: Case, now: Any, n: int = every) -> Any:
            blocks = ["blocks", "transformer_blocks"]
            return PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=n,
                cross_attention_block_skip_range=n,
                spatial_attention_timestep_skip_range=(50, 950),
                cross_attention_timestep_skip_range=(50, 950),
                spatial_attention_block_identifiers=blocks,
                cross_attention_block_identifiers=blocks,
                current_timestep_callback=now,
            )

        found.append(_enabled("diffusers PAB", f"every={every}", broadcast))
    for every in (2, 4):
        for unconditional in (2, 5):

            def faster(case: Case, now: Any, n: int = every, u: int = unconditional) -> Any:
                return FasterCacheConfig(
                    spatial_attention_block_skip_range=n,
                    spatial_attention_timestep_skip_range=(-1, 681),
                    unconditional_batch_skip_range=u,
                    unconditional_batch_timestep_skip_range=(-1, 641),
                    spatial_attention_block_identifiers=["blocks.*attn1", "transformer_blocks.*attn1"],
                    attention_weight_callback=lambda module: 0.5,
                    tensor_format="BCFHW" if case.model.startswith("video") else "BCHW",
                    is_guidance_distilled=False,
                    current_timestep_callback=now,
                )

            found.append(_enabled("diffusers FasterCache", f"attention={every},unconditional={unconditional}", faster))
    return found
