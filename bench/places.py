"""What a site with many places adds to a step at which every place is computed, beside hooks of others.

``python bench/places.py``: processor time of one thread, the quickest computed step of a run, medians over runs that
are interleaved, less that of the bare model. Every policy reuses at other steps of the same run, so that all that is
computed is remembered. Two models: the tiny Wan, and a chain of modules that do next to nothing, of which the time
beside the model is the larger part and can be told from the noise of a busy machine. ``calls`` counts the functions
that Python calls in one step more than the bare model's, which no load changes. Writes ``bench/results/places.csv``.
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

import numpy as np
import torch
from attrs import frozen
from diffusers.hooks import HookRegistry
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from torch import Tensor, nn

import cachepolicies
from added import tiny
from cachepolicies import PolicySettings
from cachepolicies_classics import FORA, PAB

OUT = Path(__file__).parent / "results" / "places.csv"
FIELDS = ("variant", "model", "blocks", "places", "added_us", "a_place_us", "calls", "bare_us")

SHAPE = (4, 2, 8, 8)
WINDOW = (0.0, 100.0)
"""Timesteps in which attentions are reused: the last ones of a run, which are not measured."""

THEIRS = "diffusers PAB"
"""What ours are compared with."""


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


class Little(nn.Module):
    """Does next to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return another tensor with the same values."""
        return x * 1.0


class Chain(nn.Module):
    """One such module after the other, called as the tiny Wan is."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Little() for _ in range(length))
        self.head = nn.Linear(SHAPE[-1], SHAPE[-1])

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Run the chain."""
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return (self.head(hidden_states),)


def places_of(model: Any, site: str) -> list[nn.Module]:
    """Return the modules that a site names."""
    if isinstance(model, Chain):
        return list(model.blocks)
    names = ("attn1", "attn2", "ffn") if "mlp" in site else ("attn1", "attn2")
    return [getattr(block, name) for block in model.blocks for name in names]


def ours(policy: PolicySettings, site: str) -> Callable[[Any, tuple[float, ...]], Variant]:
    """Return how a policy of ours is enabled at a site."""

    def build(model: Any, timesteps: tuple[float, ...]) -> Variant:
        enabled = cachepolicies.enable(model, policy, site=site, learn=False)
        computed = outside(timesteps)
        if isinstance(policy, FORA):  # every second step, counted from the last
            computed = [(len(timesteps) - 1 - step) % 2 == 0 for step in range(len(timesteps))]
        around = partial(enabled.run, timesteps)
        return Variant(len(places_of(model, site)), around, enabled.disable, computed)

    return build


def pab_of_diffusers(model: Any, timesteps: tuple[float, ...]) -> Variant:
    """Put the hooks of diffusers' PAB on every attention, or every module of the chain."""
    now: list[float] = [0.0]
    chosen = places_of(model, "attention")
    registries = [HookRegistry.check_if_exists_or_initialize(module) for module in chosen]
    for registry in registries:
        registry.register_hook(PyramidAttentionBroadcastHook(WINDOW, 2, lambda: now[0]), "pab")

    def tell(t: float) -> None:
        now[0] = t

    def off() -> None:
        for registry in registries:
            registry.remove_hook("pab")

    def forget() -> AbstractContextManager[None]:
        for registry in registries:
            registry.get_hook("pab").reset_state(None)
        return nullcontext()

    return Variant(len(chosen), forget, off, outside(timesteps), tell)


def plain_hooks(model: Any, timesteps: tuple[float, ...]) -> Variant:
    """Put a forward hook of torch on every place, which keeps what the module returned."""
    kept: dict[Any, Any] = {}

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        kept[module] = output

    chosen = places_of(model, "attention+mlp")
    hooks = [module.register_forward_hook(keep) for module in chosen]

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


Build = Callable[[Any, tuple[float, ...]], Variant]

BUILDS: dict[str, dict[str, Build]] = {
    "wan": {
        "bare": bare,
        THEIRS: pab_of_diffusers,
        "torch's forward hooks": plain_hooks,
        "fora, attention": ours(FORA(every=2), "attention"),
        "pab, attention": ours(PAB(spatial=2, cross=2, window=WINDOW), "attention"),
        "fora, attention+mlp": ours(FORA(every=2), "attention+mlp"),
    },
    "chain": {
        "bare": bare,
        THEIRS: pab_of_diffusers,
        "torch's forward hooks": plain_hooks,
        "fora": ours(FORA(every=2), "blocks.*"),
    },
}
MODELS = (("wan", 3), ("wan", 12), ("chain", 6), ("chain", 60))
"""Of how many blocks."""


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


def measure(kind: str, blocks: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Measure every variant, in turn, round after round."""
    timesteps = tuple(np.linspace(1000.0, 20.0, steps).tolist())
    model = tiny(blocks) if kind == "wan" else Chain(blocks).requires_grad_(False)
    builds = BUILDS[kind]
    taken: dict[str, list[float]] = {name: [] for name in builds}
    calls, places = {}, {}
    names = list(builds)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(rounds + 1):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                variant = builds[name](model, timesteps)
                try:
                    if number:
                        seconds_of(model, variant, timesteps)  # the first run measures what each place costs
                        taken[name].append(min(seconds_of(model, variant, timesteps)))
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
                "model": kind,
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
    """Measure, write and print, with how many times what the hooks of diffusers add at a place ours do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--model", choices=list(BUILDS), help="one of them only")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, blocks in MODELS:
        if given.model in (None, kind):
            rows += measure(kind, blocks, given.steps, given.rounds)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    theirs = {(row["model"], row["blocks"]): float(row["a_place_us"]) for row in rows if row["variant"] == THEIRS}
    for row in rows:
        times = float(row["a_place_us"]) / theirs[row["model"], row["blocks"]]
        print(f"{row['variant']:>24}", *(f"{row[name]!s:>10}" for name in FIELDS[1:]), f"{times:6.1f} times theirs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
