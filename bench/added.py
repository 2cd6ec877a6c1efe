"""What a cache adds to a step at which everything is computed, ours and its peers', on a tiny transformer.

``python bench/added.py``: processor time of one thread, the lowest tenth of the calls of a run, medians over runs that
are interleaved, less that of the bare model. Nothing is skipped: thresholds are zero, and every step is planned. Writes
``bench/results/added.csv``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

import cachepolicies
from cachepolicies import CachedDenoiser, Profile
from cachepolicies.profiles.schema import Curve, ModelInfo, SchedulerInfo

OUT = Path(__file__).parent / "results" / "added.csv"
FIELDS = ("way", "variant", "batch", "steps", "added_us", "limit_us", "bare_us")

POLICIES = {
    "never": "never",
    "uniform": "uniform:every=1",
    "schedule": "schedule",
    "magcache": "magcache:threshold=0",
    "sencache": "sencache:epsilon=1e-9,epsilon_start=1e-9",
    "teacache": "teacache:threshold=0,signal=modulated_input,coefficients=(1.0,0.0)",
}
LIMITS = {
    "in place": {"never": 40, "uniform": 60, "schedule": 60, "magcache": 60, "sencache": 120, "teacache": 120},
    "wrapper": {"never": 15, "uniform": 60, "schedule": 60, "sencache": 60},
}
"""Microseconds, for one sample; half as much again for four."""

SHAPE = (4, 2, 8, 8)


def tiny(blocks: int = 3) -> Any:
    """Return a Wan transformer with two attentions and an MLP a block, about 0.6 ms a block."""
    torch.manual_seed(0)
    return (
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=24,
            num_layers=blocks,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
        .requires_grad_(False)
        .eval()
    )


def profile_of(
    timesteps: tuple[float, ...], model: str = "WanTransformer3DModel", shape: tuple[int, ...] = SHAPE
) -> Profile:
    """Return constant sensitivities, and ratios of 1."""

    def curve(value: float) -> Curve:
        return Curve(timesteps, np.full((len(timesteps), 1), value))

    return Profile(
        name="constant",
        model=ModelInfo(model),
        prediction_type="velocity",
        latent_shape=shape,
        scheduler=SchedulerInfo("flow-euler", "flow"),
        timesteps=timesteps,
        curves={"alpha_x": curve(0.1), "alpha_t": curve(1e-4)},
        tables={"magnitude_ratio": np.ones((len(timesteps), 1))},
    )


def settings_of(policy: str, timesteps: tuple[float, ...]) -> dict[str, Any]:
    """Return how a policy is asked for."""
    given: dict[str, Any] = {"policy": POLICIES[policy]}
    if policy == "schedule":
        given["refreshes"] = tuple(range(len(timesteps)))
    if policy in ("magcache", "sencache"):
        given["profile"] = profile_of(timesteps)
    return given


class Variant:
    """One way of calling the model, with what surrounds a run of it."""

    def __init__(self, call: Callable[..., Any], around: Callable[[], AbstractContextManager[Any]], off: Any) -> None:
        self.call, self.around, self.off = call, around, off


def ours_in_place(model: Any, policy: str, timesteps: tuple[float, ...]) -> Variant:
    """Enable a policy of ours."""
    enabled = cachepolicies.enable(model, learn=False, site="blocks", **settings_of(policy, timesteps))
    return Variant(model, lambda: enabled.run(timesteps), enabled.disable)


def wrapped(model: Any, policy: str, timesteps: tuple[float, ...]) -> Variant:
    """Wrap the model."""
    denoiser = CachedDenoiser(model, learn=False, site="output", **settings_of(policy, timesteps))
    return Variant(denoiser, lambda: denoiser.run(timesteps=timesteps), lambda: None)


def theirs(model: Any, config: Any, timesteps: tuple[float, ...]) -> Variant:
    """Enable a cache of diffusers."""
    model.enable_cache(config)
    return Variant(model, lambda: model.cache_context("cond"), model.disable_cache)


def variants(steps: int) -> dict[tuple[str, str], Callable[[Any, tuple[float, ...]], Variant]]:
    """Return how each variant is set up."""
    made: dict[tuple[str, str], Callable[[Any, tuple[float, ...]], Variant]] = {
        ("", "bare"): lambda model, t: Variant(model, nullcontext, lambda: None)
    }
    for way, build in (("in place", ours_in_place), ("wrapper", wrapped)):
        for policy in LIMITS[way]:
            made[way, policy] = lambda model, t, build=build, policy=policy: build(model, policy, t)  # type: ignore[misc]
    configs = {
        "diffusers MagCache": MagCacheConfig(
            threshold=0.0,
            max_skip_steps=1,
            num_inference_steps=steps,
            mag_ratios=torch.full((steps,), 0.9),  # with 1 it would skip, whatever the threshold
        ),
        "diffusers FirstBlockCache": FirstBlockCacheConfig(threshold=0.0),
        "diffusers TaylorSeer": TaylorSeerCacheConfig(cache_interval=1, disable_cache_before_step=steps + 1),
    }
    for name, config in configs.items():
        made["peer", name] = lambda model, t, config=config: theirs(model, config, t)  # type: ignore[misc]
    return made


def seconds_of(variant: Variant, inputs: list[dict[str, Any]], timesteps: tuple[float, ...]) -> list[float]:
    """Return the processor time of every call of one run."""
    taken = []
    with variant.around():
        for given in inputs:
            start = time.thread_time()
            variant.call(**given)
            taken.append(time.thread_time() - start)
    return taken[1:]


def measure(batch: int, steps: int, rounds: int, only: str | None = None) -> list[dict[str, Any]]:
    """Measure every variant, in turn, round after round."""
    timesteps = tuple(np.linspace(1000.0, 20.0, steps).tolist())
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(batch, *SHAPE, generator=generator), torch.randn(batch, 6, 16, generator=generator)
    inputs: list[dict[str, Any]] = [
        {
            "hidden_states": x * (1.0 + 0.001 * k),
            "timestep": torch.full((batch,), t),
            "encoder_hidden_states": text,
            "return_dict": False,
        }
        for k, t in enumerate(timesteps)
    ]
    model = tiny()
    builds = {key: build for key, build in variants(steps).items() if only is None or key[1] == "bare" or only in key}
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in builds}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(rounds + 1):
            for key, build in builds.items():
                variant = build(model, timesteps)
                try:
                    seconds_of(variant, inputs, timesteps)
                    found = seconds_of(variant, inputs, timesteps)
                finally:
                    variant.off()
                if number:
                    taken[key].append(statistics.quantiles(found, n=10)[0])
    bare = taken["", "bare"]
    rows = []
    for (way, name), found in taken.items():
        if name == "bare":
            continue
        added = statistics.median(a - b for a, b in zip(found, bare, strict=True))
        limit = LIMITS.get(way, {}).get(name)
        rows.append(
            {
                "way": way,
                "variant": name,
                "batch": batch,
                "steps": steps,
                "added_us": f"{1e6 * added:.0f}",
                "limit_us": "" if limit is None else f"{limit * (1.5 if batch > 1 else 1):.0f}",
                "bare_us": f"{1e6 * statistics.median(bare):.0f}",
            }
        )
    return rows


def main() -> int:
    """Measure, write and print; returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--only", help="one way")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for batch in given.batch or [1, 4] for row in measure(batch, given.steps, given.rounds, given.only)]
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    over = 0
    for row in rows:
        beyond = bool(row["limit_us"]) and float(row["added_us"]) > float(row["limit_us"])
        over += beyond
        print(*(f"{row[name]!s:>26}" for name in FIELDS[:6]), "<- over" if beyond else "")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
