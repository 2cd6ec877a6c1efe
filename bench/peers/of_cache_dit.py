"""cache-dit's DBCache, by its rule and by its masks, with and without calibrators, on a fresh network every time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import cache_dit
from cache_dit import (
    BlockAdapter,
    DBCacheConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    ForwardPattern,
    TaylorSeerCalibratorConfig,
)
from cache_dit.caching.patch_functors import DiTPatchFunctor
from cases import Case
from entry import Entry, Run
from stepping import executed, flops_of, stepped
from torch import Tensor

logging.getLogger("cache_dit").setLevel(logging.ERROR)
logging.disable(logging.WARNING)

WARM_UP = 4


def entries() -> list[Entry]:
    """Return cache-dit's ways, swept: one block always runs, which is what decides in its rule."""
    found = []
    for threshold in (0.05, 0.12, 0.24, 0.5, 1.0):
        for most in (2, 4, -1):
            found.append(
                _enabled("cache-dit DBCache", f"threshold={threshold},most={most}", _rule(threshold, most), None)
            )
            found.append(
                _enabled(
                    "cache-dit DBCache, TaylorSeer",
                    f"threshold={threshold},most={most}",
                    _rule(threshold, most),
                    TaylorSeerCalibratorConfig(taylorseer_order=1),
                )
            )
    calibrators = {
        "": None,
        ", TaylorSeer": TaylorSeerCalibratorConfig(taylorseer_order=1),
        ", DMD": DMDCalibratorConfig(),
        ", FoCa": FoCaCalibratorConfig(),
    }
    for name, calibrator in calibrators.items():
        for mask in ("slow", "medium", "fast", "ultra"):
            found.append(_enabled(f"cache-dit mask{name}", mask, _masked(mask), calibrator))
    return found


def _rule(threshold: float, most: int) -> dict[str, Any]:
    return {"residual_diff_threshold": threshold, "max_continuous_cached_steps": most}


def _masked(policy: str) -> dict[str, Any]:
    mask = cache_dit.steps_mask(mask_policy=policy, total_steps=50)
    return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


def _enabled(method: str, setting: str, settings: dict[str, Any], calibrator: Any) -> Entry:
    def run(case: Case, seeds: Sequence[int]) -> Run:
        workload = case.fresh()
        whole = flops_of(workload, seeds[0])
        guided: Any = workload.denoiser
        config = DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=WARM_UP,
            num_inference_steps=workload.num_steps,
            **settings,
        )
        cache_dit.enable_cache(_adapter(guided.network), cache_config=config, calibrator_config=calibrator)

        def one(seed: int) -> Tensor:
            cache_dit.refresh_context(guided.network, num_inference_steps=workload.num_steps)
            return stepped(workload, seed, [0.0], _nothing)

        pictures, flops = executed(one, seeds)
        return Run(pictures, flops / whole)

    return Entry(method, setting, run)


def _adapter(network: Any) -> BlockAdapter:
    """Return what cache-dit itself has for these two classes, without a pipeline around them."""
    if hasattr(network, "transformer_blocks"):
        return BlockAdapter(
            transformer=network,
            blocks=network.transformer_blocks,
            forward_pattern=ForwardPattern.Pattern_3,
            patch_functor=DiTPatchFunctor(),
            has_separate_cfg=False,
        )
    return BlockAdapter(
        transformer=network, blocks=network.blocks, forward_pattern=ForwardPattern.Pattern_2, has_separate_cfg=False
    )


def _nothing(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def versions() -> str:
    """Return the version, for provenance."""
    return f"cache-dit {cache_dit.__version__}"
