"""What a site with many places adds to a step at which every place is computed, beside hooks of others.

``python bench/places.py``: processor time of one thread, the lowest tenth of the computed steps of a run, medians over
runs that are interleaved, less that of the bare model. Every policy reuses at other steps of the same run, so that all
that is computed is remembered. ``calls`` counts the functions that Python calls in one step more than the bare model's,
which no load of the machine changes. Writes ``bench/results/places.csv``.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from attrs import frozen
from diffusers import PyramidAttentionBroadcastConfig

import cachepolicies
from cachepolicies import PolicySettings
from cachepolicies_classics import FORA, PAB

OUT = Path(__file__).parent / "results" / "places.csv"
FIELDS = ("variant", "blocks", "places", "added_us", "a_place_us", "calls", "bare_us")

SHAPE = (4, 2, 8, 8)
WINDOW = (0.0, 100.0)
"""Timesteps in which attentions are reused: the last ones of a run, which are not measured."""

THEIRS = "diffusers PAB, attention"
HELD_TO_IT = ("fora, attention", "pab, attention", "fora, attention+mlp")
"""Variants that should add no more than `THEIRS` does."""


@frozen
class Variant:
    """One way of calling the model.

    Attributes:
        places: how many modules are looked at.
        around: what surrounds a run.
        off: takes off what was put on.
        computed: for each step of a run, whether every place is computed there.
        tell: is told the timestep of a step before it, as a pipeline's callback is.
    """

    places: int
    around: Callable[[], AbstractContextManager[Any]]
    off: Callable[[], None]
    computed: Sequence[bool]
    tell: Callable[[float], object] = float


def tiny(blocks: int) -> Any:
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


def ours(policy: PolicySettings, site: str) -> Callable[[Any, tuple[float, ...]], Variant]:
    """Return how a policy of ours is enabled at a site."""

    def build(model: Any, timesteps: tuple[float, ...]) -> Variant:
        places = len(model.blocks) * (3 if "mlp" in site else 2)
        enabled = cachepolicies.enable(model, policy, site=site, learn=False)
        if isinstance(policy, FORA):  # every second step, counted from the last
            computed = [(len(timesteps) - 1 - step) % 2 == 0 for step in range(len(timesteps))]
        else:
            computed = outside(timesteps)
        return Variant(places, lambda: enabled.run(timesteps), enabled.disable, computed)

    return build


def pab_of_diffusers(model: Any, timesteps: tuple[float, ...]) -> Variant:
    """Enable the hooks of diffusers' PAB, on every attention."""
    now: list[float] = [0.0]
    model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=WINDOW,
            cross_attention_timestep_skip_range=WINDOW,
            spatial_attention_block_identifiers=("attn1",),
            cross_attention_block_identifiers=("attn2",),
            current_timestep_callback=lambda: now[0],
        )
    )

    def tell(t: float) -> None:
        now[0] = t

    around = partial(model.cache_context, "cond")
    return Variant(2 * len(model.blocks), around, model.disable_cache, outside(timesteps), tell)


def plain_hooks(model: Any, timesteps: tuple[float, ...]) -> Variant:
    """Put a forward hook of torch on every attention and MLP, which keeps what the module returned."""
    kept: dict[Any, Any] = {}
    chosen = [module for block in model.blocks for module in (block.attn1, block.attn2, block.ffn)]
    hooks = [
        module.register_forward_hook(lambda module, given, output: kept.update({module: output})) for module in chosen
    ]

    def off() -> None:
        for hook in hooks:
            hook.remove()

    return Variant(len(chosen), nullcontext, off, outside(timesteps))


def bare(model: Any, timesteps: tuple[float, ...]) -> Variant:
    """Leave the model as it is."""
    return Variant(0, nullcontext, lambda: None, outside(timesteps))


def outside(timesteps: Sequence[float]) -> list[bool]:
    """Return which steps are outside of the window in which attentions are reused."""
    return [not WINDOW[0] < t < WINDOW[1] for t in timesteps]


BUILDS: dict[str, Callable[[Any, tuple[float, ...]], Variant]] = {
    "bare": bare,
    THEIRS: pab_of_diffusers,
    "torch's forward hooks, attention+mlp": plain_hooks,
    "fora, attention": ours(FORA(every=2), "attention"),
    "pab, attention": ours(PAB(spatial=2, cross=2, window=WINDOW), "attention"),
    "fora, attention+mlp": ours(FORA(every=2), "attention+mlp"),
}


def inputs_of(timesteps: Sequence[float]) -> list[dict[str, Any]]:
    """Return what the model is called with at every step."""
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, *SHAPE, generator=generator), torch.randn(1, 6, 16, generator=generator)
    return [
        {
            "hidden_states": x * (1.0 + 0.001 * k),
            "timestep": torch.full((1,), t),
            "encoder_hidden_states": text,
            "return_dict": False,
        }
        for k, t in enumerate(timesteps)
    ]


def seconds_of(model: Any, variant: Variant, timesteps: Sequence[float]) -> list[float]:
    """Return the processor time of every computed step of one run but the first two, which set things up."""
    taken = []
    with variant.around():
        for t, given in zip(timesteps, inputs_of(timesteps), strict=True):
            variant.tell(t)
            start = time.thread_time()
            model(**given)
            taken.append(time.thread_time() - start)
    return [second for second, computed in zip(taken, variant.computed, strict=True) if computed][2:]


def calls_of(model: Any, variant: Variant, timesteps: Sequence[float]) -> int:
    """Return how many functions Python calls in a computed step, the median over those of one run."""
    count, counts = 0, []

    def seen(frame: object, event: str, what: object) -> None:
        nonlocal count
        count += event == "call"

    with variant.around():
        for t, given in zip(timesteps, inputs_of(timesteps), strict=True):
            variant.tell(t)
            count = 0
            sys.setprofile(seen)
            try:
                model(**given)
            finally:
                sys.setprofile(None)
            counts.append(count)
    return int(statistics.median([n for n, computed in zip(counts, variant.computed, strict=True) if computed][2:]))


def measure(blocks: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every variant, in turn, round after round."""
    timesteps = tuple(np.linspace(1000.0, 20.0, steps).tolist())
    model = tiny(blocks)
    taken: dict[str, list[float]] = {name: [] for name in BUILDS}
    calls, places = {}, {}
    names = list(BUILDS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                variant = BUILDS[name](model, timesteps)
                try:
                    if number:
                        seconds_of(model, variant, timesteps)  # the first run measures what each place costs
                        taken[name].append(statistics.quantiles(seconds_of(model, variant, timesteps), n=10)[0])
                    else:
                        seconds_of(model, variant, timesteps)
                        calls[name], places[name] = calls_of(model, variant, timesteps), variant.places
                finally:
                    variant.off()
    rows = []
    for name, found in taken.items():
        if name == "bare":
            continue
        added = 1e6 * statistics.median(a - b for a, b in zip(found, taken["bare"], strict=True))
        rows.append(
            {
                "variant": name,
                "blocks": blocks,
                "places": places[name],
                "added_us": f"{added:.0f}",
                "a_place_us": f"{added / places[name]:.1f}",
                "calls": calls[name] - calls["bare"],
                "bare_us": f"{1e6 * statistics.median(taken['bare']):.0f}",
            }
        )
    return rows


def main() -> int:
    """Measure, write and print; returns 1 where a policy of ours adds more than the hooks of diffusers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--blocks", type=int, action="append", help="of the model; 3 and 12 where none is given")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for blocks in given.blocks or [3, 12] for row in measure(blocks, given.steps, given.rounds)]
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    over = 0
    theirs = {row["blocks"]: float(row["added_us"]) for row in rows if row["variant"] == THEIRS}
    for row in rows:
        beyond = row["variant"] in HELD_TO_IT and float(row["added_us"]) > theirs[row["blocks"]]
        over += beyond
        print(f"{row['variant']:>40}", *(f"{row[name]!s:>10}" for name in FIELDS[1:]), "<- over" if beyond else "")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
