"""Caches side by side at equal work: ``make bench-peers``, or ``python bench/peers.py MODEL ...``.

diffusers' own caches, each swept over its settings, and this library's, on the reference models and their twins. The
work is the part of the uncached run's FLOPs that was executed, counted on one sample. Every row of
``bench/results/peers.csv`` is one model, method and setting; what is there already is left out. ``--short`` takes
four samples of the sound and image twins, into a file of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import diffusers
import numpy as np
import torch
from attrs import asdict, fields, frozen
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import cachepolicies
from cachepolicies import CachedDenoiser, Profile, load_profile, sample
from cachepolicies.comparison import Workload
from cachepolicies.comparison.metrics import psnr
from cachepolicies.planning import plan
from cachepolicies.policies import Schedule
from cachepolicies.reference import workloads

RESULTS = Path(__file__).parent / "results" / "peers.csv"
PROFILES = Path(__file__).parents[1] / "profiles"
MODELS = ("sound_transformer_twin", "image_dit_twin", "photo_unet_twin", "video_dit_twin")
SEEDS = range(3000, 3016)
BUDGETS = (10, 13, 17, 22, 31)
CORRECTED = "linear:correct=0.8"
ALONG_PATH = "linear:time=path,correct=0.8"

logging.getLogger("diffusers").setLevel(logging.ERROR)


@frozen
class Row:
    """One model, method and setting; PSNR in dB against the uncached samples."""

    model: str
    method: str
    setting: str
    work: float
    samples: int
    mean: float
    lowest_tenth: float
    worst: float
    versions: str
    machine: str


@frozen
class Run:
    """What one setting gave."""

    pictures: Tensor
    work: float


@frozen
class Entry:
    """One setting of one method, and how it is sampled."""

    method: str
    setting: str
    sample: Callable[[Workload, Profile, Sequence[int]], Run]


def uncached(workload: Workload, seeds: Sequence[int], steps: int | None = None) -> Tensor:
    """Return the pictures of uncached runs."""
    return _sampled(workload, seeds, workload.denoiser, steps)


def _sampled(workload: Workload, seeds: Sequence[int], denoiser: Any, steps: int | None = None) -> Tensor:
    inputs = workload.draw(seeds)
    latents = sample(
        denoiser, workload.scheduler, inputs.noise, *inputs.args, num_steps=steps or workload.num_steps, **inputs.kwargs
    )
    return workload.pictures(latents)


# -- ours -------------------------------------------------------------------------------------------------------------


def fewer_steps(steps: int) -> Entry:
    """Return the same solver with fewer steps."""

    def run(workload: Workload, profile: Profile, seeds: Sequence[int]) -> Run:
        return Run(uncached(workload, seeds, steps), steps / workload.num_steps)

    return Entry("fewer steps", str(steps), run)


def planned(method: str, budget: int, knows: Callable[[Profile], Profile], weights: Any) -> Entry:
    """Return a plan from as much of a profile as ``knows`` leaves."""

    def run(workload: Workload, profile: Profile, seeds: Sequence[int]) -> Run:
        known = knows(profile)
        made = plan(known, budget, substitute=ALONG_PATH, weights=weights)
        return _cached(workload, seeds, Schedule(plan=made), ALONG_PATH, known)

    return Entry(method, str(budget), run)


def rule(method: str, policy: str, substitute: str) -> Entry:
    """Return a policy that needs no profile."""

    def run(workload: Workload, profile: Profile, seeds: Sequence[int]) -> Run:
        return _cached(workload, seeds, policy, substitute, None)

    return Entry(method, policy, run)


def _cached(workload: Workload, seeds: Sequence[int], policy: Any, substitute: str, profile: Profile | None) -> Run:
    cached = CachedDenoiser(
        workload.denoiser, policy, profile=profile, substitute=substitute, scheduler=workload.scheduler
    )
    pictures = _sampled(workload, seeds, cached)
    return Run(pictures, float(cached.nfe) / workload.num_steps)


def one_uncached_run(profile: Profile) -> Profile:
    """Return what one uncached run tells: distances between outputs and latents, no weights."""
    tables = {name: profile.tables[name][:, :, :1] for name in ("change", "displacement")}
    return attrs.evolve(profile, tables=tables, curves={}, polynomials={}, samples=1, seeds=profile.seeds[:1])


# -- diffusers --------------------------------------------------------------------------------------------------------


def peer(method: str, setting: str, config: Callable[[Workload, Profile, Callable[[], float]], Any]) -> Entry:
    """Return a cache of diffusers, enabled anew for every sample."""

    def run(workload: Workload, profile: Profile, seeds: Sequence[int]) -> Run:
        guided: Any = workload.denoiser
        network, now = guided.network, [0.0]
        pictures, work = [], 0.0
        with _cacheable(network):
            for seed in seeds:
                network.enable_cache(config(workload, profile, lambda: now[0]))
                counting = FlopCounterMode(display=False) if seed == seeds[0] else contextlib.nullcontext()
                with counting as counted:
                    pictures.append(_stepped(workload, network, seed, now))
                network.disable_cache()
                if counted is not None:
                    work = counted.get_total_flops() / _flops(workload, seed)
        return Run(torch.cat(pictures), work)

    return Entry(method, setting, run)


def _stepped(workload: Workload, network: Any, seed: int, now: list[float]) -> Tensor:
    """Sample once, telling the cache of each step what the pipelines of diffusers tell it."""
    inputs, steps = workload.draw([seed]), workload.num_steps
    run, x = workload.scheduler.begin(steps), workload.scheduler.initial(inputs.noise, steps)
    for step in range(steps):
        now[0] = run.t
        level = torch.tensor([run.t], dtype=torch.float64)
        alpha, sigma = workload.scheduler.alpha(level).item(), workload.scheduler.sigma(level).item()
        given, t = run.model_input(x)
        share = sigma / (alpha + sigma)
        with network.cache_context("both", step_index=step, sigma=share, num_inference_steps=steps):
            output = workload.denoiser(given, t, *inputs.args)
        x = run.advance(output, x)
    return workload.pictures(x)


def _flops(workload: Workload, seed: int) -> int:
    with FlopCounterMode(display=False) as counted:
        uncached(workload, [seed])
    return int(counted.get_total_flops())


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


def peers() -> list[Entry]:
    """Return diffusers' caches, swept."""
    found = []
    for order in (0, 1):
        for most, thresholds in ((2, (0.1, 0.25, 0.5, 1.0, 2.0)), (0, (0.25, 0.5, 1.0, 2.0))):
            for threshold in thresholds:

                def sea(w: Any, p: Any, now: Any, th: float = threshold, o: int = order, m: int = most) -> Any:
                    return SeaCacheConfig(
                        threshold=th, residual_order=o, max_consecutive_cached=m, raw_vision_callback=_raw_images
                    )

                found.append(peer("diffusers SeaCache", f"threshold={threshold},order={order},most={most}", sea))
    for interval in (2, 3, 4, 5, 6):
        for order in (1, 2):

            def taylor(w: Any, p: Any, now: Any, i: int = interval, o: int = order) -> Any:
                return TaylorSeerCacheConfig(
                    cache_interval=i,
                    max_order=o,
                    disable_cache_before_step=3,
                    taylor_factors_dtype=torch.float32,
                    # every attention and feed-forward module: its own patterns know none of these two classes
                    cache_identifiers=[r"(transformer_)?blocks\.\d+\.(attn1|attn2|ffn?)"],
                )

            found.append(peer("diffusers TaylorSeer", f"interval={interval},order={order}", taylor))
    for threshold in (0.02, 0.06, 0.12, 0.24, 0.5):
        for most in (2, 4, 8):

            def mag(w: Any, p: Any, now: Any, th: float = threshold, m: int = most) -> Any:
                ratios = p.tables["magnitude_ratio"].mean(axis=1).tolist()
                return MagCacheConfig(
                    threshold=th, max_skip_steps=m, retention_ratio=0.1, num_inference_steps=50, mag_ratios=ratios
                )

            found.append(peer("diffusers MagCache", f"threshold={threshold},most={most}", mag))
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):

        def first_block(w: Any, p: Any, now: Any, th: float = threshold) -> Any:
            return FirstBlockCacheConfig(threshold=th)

        found.append(peer("diffusers FirstBlockCache", f"threshold={threshold}", first_block))
    for every in (2, 4, 8):

        def broadcast(w: Any, p: Any, now: Any, n: int = every) -> Any:
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

        found.append(peer("diffusers PAB", f"every={every}", broadcast))
    return found


def ours() -> list[Entry]:
    """Return this library's settings at the budgets, and those without a profile."""
    found = [fewer_steps(budget) for budget in BUDGETS]
    found += [planned("planned, full profile", b, lambda profile: profile, "geometric") for b in BUDGETS]
    found += [planned("planned, one uncached run", b, one_uncached_run, "uniform") for b in BUDGETS]
    found += [rule("no profile: uniform, corrected line", f"uniform:evaluations={b}", CORRECTED) for b in BUDGETS]
    for threshold in (0.1, 0.25, 0.5, 1.0, 2.0):
        for most in (2, 4, 8):
            spec = f"seacache:threshold={threshold},max_reuse={most}"
            found.append(rule("no profile: seacache, corrected line", spec, CORRECTED))
    return found


def measure(model: str, done: set[tuple[str, str, str]], seeds: Sequence[int]) -> Iterator[Row]:
    """Sample what a model lacks."""
    workload: Workload = getattr(workloads, model)()
    profile = load_profile(PROFILES / f"{workload.name}.json")
    transformer = model.startswith(("video", "image"))
    entries = [e for e in ours() + (peers() if transformer else []) if (workload.name, e.method, e.setting) not in done]
    reference = uncached(workload, seeds) if entries else torch.empty(0)
    versions = (
        f"cachepolicies {cachepolicies.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )
    for entry in entries:
        made = entry.sample(workload, profile, seeds)
        quality = psnr(made.pictures, reference).clamp(max=100.0)
        yield Row(
            workload.name,
            entry.method,
            entry.setting,
            round(made.work, 4),
            len(seeds),
            round(quality.mean().item(), 3),
            round(float(np.quantile(quality.numpy(), 0.1)), 3),
            round(quality.min().item(), 3),
            versions,
            platform.machine(),
        )


def main() -> None:
    """Measure what the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--short", action="store_true", help="four samples of two models, into peers-short.csv")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or (RESULTS.with_name("peers-short.csv") if given.short else RESULTS)
    models = given.models or (MODELS[:2] if given.short else MODELS)
    seeds = SEEDS[:4] if given.short else SEEDS
    names = [field.name for field in fields(Row)]
    done: set[tuple[str, str, str]] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        with out.open(newline="") as file:
            done = {(row["model"], row["method"], row["setting"]) for row in csv.DictReader(file)}
    else:
        with out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(names)
    for model in models:
        started = time.monotonic()
        with torch.no_grad():
            for row in measure(model, done, seeds):
                with out.open("a", newline="") as file:
                    csv.DictWriter(file, names, lineterminator="\n").writerow(asdict(row))
                print(*list(asdict(row).values())[:8], flush=True)
        print(f"{model}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
