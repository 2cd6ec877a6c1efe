"""How much of the speed-up that its executed FLOPs promise a cache gives, at 22 of 50 evaluations; ours and its peers'.

``python bench/speedup.py`` runs the trained video DiT on the CPU, one thread, and writes ``bench/results/speedup.csv``.
Runs of all variants are interleaved. The time of a run is the sum of its steps', of each the median over the rounds.
The figure is the time of the bare run over the variant's, times the share of the FLOPs that it executes, counted in a
run of its own. 1 is what the FLOPs promise.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig
from torch.utils.flop_counter import FlopCounterMode

import cachepolicies
from cachepolicies import CachedDenoiser
from cachepolicies.policies import Schedule
from cachepolicies.reference import moving_digits
from cachepolicies.reference.video_dit import load_video_dit

OUT = Path(__file__).parent / "results" / "speedup.csv"
FIELDS = ("variant", "share", "speed_up", "of_promised", "limit")
LIMITS = {"ours at output": 0.97, "ours at blocks": 0.95}
EVALUATIONS = 22

Call = Callable[[int], Any]
"""Calls the model at a step."""


@frozen(eq=False)
class Subject:
    """A model and the calls of a run.

    Attributes:
        model: the network.
        inputs: keyword arguments of the call at a step, ``return_dict=False`` among them.
        timesteps: of the run.
        wait: until the device is done.
        at_once: whether a call is done when it returns, so that steps can be timed one by one.
    """

    model: Any
    inputs: Callable[[int], dict[str, Any]]
    timesteps: tuple[float, ...]
    wait: Callable[[], None] = field(default=lambda: None)
    at_once: bool = True

    @property
    def steps(self) -> range:
        """The steps of a run."""
        return range(len(self.timesteps))


Variant = Callable[[Subject], AbstractContextManager[Call]]
"""Sets a run of a variant up, and takes it off again."""


def evenly(steps: int, evaluations: int) -> tuple[int, ...]:
    """Return so many evenly spaced steps."""
    return tuple(k * steps // evaluations for k in range(evaluations))


def bare(subject: Subject) -> AbstractContextManager[Call]:
    """Call the model itself."""
    return nullcontext(lambda k: subject.model(**subject.inputs(k)))


def in_place(policy: Any, site: str = "blocks") -> Variant:
    """Enable a policy of ours."""

    @contextmanager
    def set_up(subject: Subject) -> Iterator[Call]:
        with (
            cachepolicies.enable(subject.model, policy, site=site, learn=False) as enabled,
            enabled.run(subject.timesteps),
        ):
            yield lambda k: subject.model(**subject.inputs(k))

    return set_up


def wrapped(policy: Any) -> Variant:
    """Wrap the model."""

    @contextmanager
    def set_up(subject: Subject) -> Iterator[Call]:
        denoiser = CachedDenoiser(subject.model, policy, site="output", learn=False)
        with denoiser.run(timesteps=subject.timesteps):
            yield lambda k: denoiser(**subject.inputs(k))

    return set_up


def of_diffusers(config: Callable[[int], Any]) -> Variant:
    """Enable a cache of diffusers; ``config`` is given the number of steps."""

    @contextmanager
    def set_up(subject: Subject) -> Iterator[Call]:
        subject.model.enable_cache(config(len(subject.timesteps)))
        try:
            with subject.model.cache_context("cond"):
                yield lambda k: subject.model(**subject.inputs(k))
        finally:
            subject.model.disable_cache()

    return set_up


def of_cache_dit(module: Any) -> Variant:
    """Enable cache-dit with a mask of every second step."""
    logging.getLogger("cache_dit").setLevel(logging.ERROR)

    @contextmanager
    def set_up(subject: Subject) -> Iterator[Call]:
        steps = len(subject.timesteps)
        chosen = set(evenly(steps, EVALUATIONS * steps // 50))
        config = module.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=1,
            num_inference_steps=steps,
            residual_diff_threshold=1e9,
            steps_computation_mask=[int(k in chosen) for k in range(steps)],
            steps_computation_policy="static",
        )
        adapter = module.BlockAdapter(
            transformer=subject.model,
            blocks=subject.model.blocks,
            forward_pattern=module.ForwardPattern.Pattern_2,
            has_separate_cfg=False,
        )
        with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            module.enable_cache(adapter, cache_config=config)
        try:
            module.refresh_context(subject.model, num_inference_steps=steps)
            yield lambda k: subject.model(**subject.inputs(k))
        finally:
            module.disable_cache(adapter)

    return set_up


def variants(steps: int, *, first_block: float = 0.05) -> dict[str, Variant]:
    """Return the variants by name, the bare model first.

    Args:
        steps: of the run.
        first_block: threshold of FirstBlockCache, which has no schedule.
    """
    plan = Schedule(refreshes=evenly(steps, EVALUATIONS * steps // 50))
    found: dict[str, Variant] = {
        "bare": bare,
        "ours at output": wrapped(plan),
        "ours at blocks": in_place(plan),
        "diffusers FirstBlockCache": of_diffusers(lambda n: FirstBlockCacheConfig(threshold=first_block)),
        "diffusers MagCache": of_diffusers(
            lambda n: MagCacheConfig(
                threshold=1.0, max_skip_steps=2, retention_ratio=0.2, num_inference_steps=n, mag_ratios=torch.ones(n)
            )
        ),
    }
    with contextlib.suppress(ImportError):  # where it is not installed, the others are measured
        found["cache-dit, static mask"] = of_cache_dit(importlib.import_module("cache_dit"))
    return found


def flops(subject: Subject, variant: Variant) -> int:
    """Return the FLOPs of a run."""
    counter = FlopCounterMode(display=False)
    with variant(subject) as call, counter:
        for k in subject.steps:
            call(k)
    return int(counter.get_total_flops())


def seconds(subject: Subject, variant: Variant) -> list[float]:
    """Return how long the steps of a run take, set-up left out; on a device, which is not waited for, all in one."""
    with variant(subject) as call:
        subject.wait()
        taken, began = [], time.perf_counter()
        for k in subject.steps:
            call(k)
            if subject.at_once:
                taken.append(time.perf_counter() - began)
                began = time.perf_counter()
        subject.wait()
        return taken or [time.perf_counter() - began]


@torch.no_grad()
def measure(subject: Subject, chosen: dict[str, Variant], rounds: int) -> list[dict[str, str]]:
    """Measure the variants in turn; the first must be the bare model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = {name: flops(subject, variant) for name, variant in chosen.items()}
        taken: dict[str, list[list[float]]] = {name: [] for name in chosen}
        for number in range(rounds + 1):
            for name, variant in chosen.items():
                found = seconds(subject, variant)
                if number:  # the first round warms up
                    taken[name].append(found)
    runs = {
        name: math.fsum(statistics.median(step) for step in zip(*found, strict=True)) for name, found in taken.items()
    }
    rows = []
    for name in chosen:
        if name == "bare":
            continue
        share, gain = counted[name] / counted["bare"], runs["bare"] / runs[name]
        rows.append(
            {
                "variant": name,
                "share": f"{share:.4f}",
                "speed_up": f"{gain:.3f}",
                "of_promised": f"{gain * share:.3f}",
                "limit": str(LIMITS.get(name, "")),
            }
        )
    return rows


def video_dit(batch: int = 4) -> Subject:
    """Return the trained video DiT with a run of 50 steps."""
    steps = 50
    generator = torch.Generator().manual_seed(0)
    noise, other = (torch.randn(batch, *moving_digits.LATENT_SHAPE, generator=generator) for _ in range(2))
    captions = moving_digits.draw_captions(batch, generator).embed()
    timesteps = tuple(1000.0 - 1000.0 * k / steps for k in range(steps))

    def inputs(k: int) -> dict[str, Any]:
        turned = 1.5 * k / steps
        x = noise * torch.cos(torch.tensor(turned)) + other * torch.sin(torch.tensor(turned))
        return {
            "hidden_states": x,
            "timestep": torch.full((batch,), timesteps[k]),
            "encoder_hidden_states": captions,
            "return_dict": False,
        }

    made = [inputs(k) for k in range(steps)]
    return Subject(load_video_dit(), lambda k: made[k], timesteps)


def main() -> int:
    """Measure, write and print; returns 1 if a limit is missed, or a peer is better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="variants with this text, and the bare model")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = video_dit()
    chosen = {
        name: variant
        for name, variant in variants(len(subject.timesteps)).items()
        if name == "bare" or not given.only or given.only in name
    }
    rows = measure(subject, chosen, given.rounds)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    missed = 0
    for row in rows:
        below = bool(row["limit"]) and float(row["of_promised"]) < float(row["limit"])
        missed += below
        print(*(f"{row[name]!s:>26}" for name in FIELDS), "<- short" if below else "")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
