"""What an enabled policy that never reuses adds to a forward pass of the trained video DiT, beside diffusers' own.

Run with ``make bench``. One network serves all variants, enabled and disabled in turn, run after run, in an order that
rotates: a copy of its own would lie elsewhere in memory, which alone makes more of a difference than what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from diffusers.hooks import MagCacheConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

import cachepolicies
from cachepolicies.reference import moving_digits
from cachepolicies.reference.video_dit import load_video_dit

BATCH = 4
STEPS = 50
LIMIT = 0.01
"""Part of a forward pass that an enabled policy which never reuses may add."""

POLICIES = {
    "never": "never",
    "magcache, threshold 0": "magcache:threshold=0",
    "teacache, threshold 0": "teacache:threshold=0,signal=modulated_input",
    "sencache, tolerance 1e-9": "sencache:epsilon=1e-9,epsilon_start=1e-9",
}
"""The last one cannot know that it will never reuse: it remembers, and measures a distance, at every step."""

THEIRS = "diffusers MagCacheConfig, threshold 0"

HELD_TO_THE_LIMIT = ("never", "magcache, threshold 0")


@frozen
class Cost:
    """What one variant adds.

    Attributes:
        variant: its name.
        added_us: microseconds that its median call takes more than the median bare call.
        added: the same as a part of the bare call.
        fastest: its fastest call over the fastest bare call, less 1.
    """

    variant: str
    added_us: float
    added: float
    fastest: float


def main() -> int:
    """Measure, print, and return 1 if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=6, help="runs of 50 calls of every variant")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is steadier on a shared machine")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", cachepolicies.CacheWarning)  # that nothing is reused is what is measured
    timesteps = tuple(1000.0 - 1000.0 * k / STEPS for k in range(STEPS))
    network = load_video_dit()
    names = ["bare", *POLICIES, THEIRS]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for run in range(arguments.runs + 1):
            turn = run % len(names)
            for name in (*names[turn:], *names[:turn]):
                times = one_run(network, name, timesteps)
                if run:  # the first warms up
                    seconds[name] += times
    costs = [cost_of(name, seconds["bare"], times) for name, times in seconds.items() if name != "bare"]
    bare = statistics.median(seconds["bare"])
    table = Table(title=f"Added to a forward pass of {bare * 1e3:.1f} ms, batch {BATCH}, {arguments.threads} thread(s)")
    for heading in ("variant", "added us", "added", "fastest", "limit"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for cost in costs:
        limit = f"{LIMIT:.0%}" if cost.variant in HELD_TO_THE_LIMIT else ""
        table.add_row(cost.variant, f"{cost.added_us:.0f}", f"{cost.added:.2%}", f"{cost.fastest:.2%}", limit)
    Console(width=110).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    exceeded = [c.variant for c in costs if c.variant in HELD_TO_THE_LIMIT and min(c.added, c.fastest) > LIMIT]
    if exceeded:
        print(f"the limit is exceeded by: {', '.join(exceeded)}", file=sys.stderr)
    return int(bool(exceeded))


def one_run(network: Any, name: str, timesteps: tuple[float, ...]) -> list[float]:
    """Return the seconds of every call of a run of one variant."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *moving_digits.LATENT_SHAPE, generator=generator)
    captions = moving_digits.draw_captions(BATCH, generator).embed()
    with contextlib.ExitStack() as stack:
        if name in POLICIES:
            enabled = stack.enter_context(cachepolicies.enable(network, POLICIES[name], profile="video-dit"))
            stack.enter_context(enabled.run(timesteps=timesteps))
        elif name == THEIRS:
            # a ratio of exactly 1 adds no error, and theirs reuses at an error of 0
            network.enable_cache(MagCacheConfig(threshold=0.0, num_inference_steps=STEPS, mag_ratios=[0.98] * STEPS))
            stack.callback(network.disable_cache)
        return [
            timed(network, x * (1.0 - 0.01 * k), torch.full((BATCH,), t), captions) for k, t in enumerate(timesteps)
        ]


def timed(model: Callable[..., Any], x: Tensor, t: Tensor, captions: Tensor) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    model(hidden_states=x, timestep=t, encoder_hidden_states=captions, return_dict=False)
    return time.perf_counter() - start


def cost_of(variant: str, bare: list[float], times: list[float]) -> Cost:
    """Compare the calls of a variant with the bare calls."""
    added = statistics.median(times) - statistics.median(bare)
    return Cost(variant, 1e6 * added, added / statistics.median(bare), min(times) / min(bare) - 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
