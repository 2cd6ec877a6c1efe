"""SpeCa of the plugin `cachepolicies-drafts` on tiny pipelines, against a computation by torch's own hooks."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

import cachepolicies
from cachepolicies import Trace
from cachepolicies.adapters import adapter_of
from cachepolicies.sites import range_of
from cachepolicies.substitutes import Taylor
from cachepolicies_drafts import SpeCa
from enabled_pipelines import blocks_of, counted, one_thread  # noqa: F401  # a fixture
from more_pipelines import MORE
from tiny_pipelines import PIPELINES

STEPS = 12
TRANSFORMERS = ("flux", "wan", "sd3", "ltx", "cogvideox", "dit")
APART = {"flux": 2, "wan": 2}
"""Calls a step, where branches are called apart."""

pytestmark = pytest.mark.usefixtures("one_thread")

NEVER = SpeCa(base=1e9, decay=1.0, warm_up=3, unverified=1, most=4)
"""Rejects nothing."""


def entry(key: str) -> Any:
    """Return a tiny pipeline and how it is called."""
    return {**PIPELINES, **MORE}[key]


def draft(order: int) -> Taylor:
    """Return the stand-in as published, in step index."""
    return Taylor(order=order, differences="taylorseer", time="index", guard=None)


class Part:
    """What some blocks add, step after step of one branch, and the Taylor series through it."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.seen: list[tuple[int, list[Tensor | None]]] = []

    def note(self, step: int, added: list[Tensor | None]) -> None:
        """Note what was added at a computed step."""
        self.seen = [(step, added), *self.seen][: self.order + 1]

    def at(self, step: int) -> list[Tensor | None]:
        """Return the series at a step, stream by stream; of a lower order while little was seen."""
        found: list[Tensor | None] = []
        for stream in range(len(self.seen[0][1])):
            steps, values = [at for at, _ in self.seen], [added[stream] for _, added in self.seen]
            newest = values[0]
            if newest is None:
                found.append(None)
                continue
            total: Tensor = newest
            level: list[Any] = list(values)
            for power in range(1, len(values)):
                level = [(level[k] - level[k + 1]) / (steps[k] - steps[k + 1]) for k in range(len(level) - 1)]
                total = total + level[0] * (step - steps[0]) ** power / math.factorial(power)
            found.append(total)
        return found


class ByHand:
    """SpeCa on a transformer, written down once more: hooks replace what leaves the front and what leaves the rear."""

    def __init__(self, network: nn.Module, policy: SpeCa, order: int, branches: int) -> None:
        self.network, self.policy, self.branches = network, policy, branches
        self.front = [Part(order) for _ in range(branches)]
        self.rear = [Part(order) for _ in range(branches)]
        self.calls = -1
        self.drafted: int | None = None
        self.rejected = False
        self.full = True
        self.done: list[str] = []
        self.errors: list[float] = []
        self.entered: list[Tensor | None] = []

    @property
    def step(self) -> int:
        """Number of the step."""
        return self.calls // self.branches

    @property
    def branch(self) -> int:
        """Number of the branch."""
        return self.calls % self.branches

    def called(self, *_: Any) -> None:
        """Decide at the first branch of a step."""
        self.calls += 1
        if self.branch:
            return
        limit = self.drafted is None or self.rejected or self.drafted >= self.policy.most
        self.full = self.step < self.policy.warm_up or limit
        self.rejected = False
        self.drafted = 0 if self.full else (self.drafted or 0) + 1
        due = not self.full and self.drafted > self.policy.unverified
        self.done.append("full" if self.full else "verified" if due else "drafted")

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Replace what blocks return for the length of the context."""
        blocks, adapter = blocks_of(self.network), adapter_of(self.network)
        cut = len(blocks) - self.policy.last
        streams = range_of(self.network, adapter, 0, None).streams

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            self.entered = [given[name] if torch.is_tensor(given.get(name)) else None for name in streams]

        def leave(parts: Sequence[Part], output: Any) -> Any:
            left: list[Tensor | None] = [output] if torch.is_tensor(output) else list(output)
            part = parts[self.branch]
            if self.full:
                pairs = zip(left, self.entered, strict=True)
                part.note(self.step, [None if a is None or b is None else a - b for a, b in pairs])
                return None
            forecast = part.at(self.step)
            made = [None if a is None or b is None else a + b for a, b in zip(self.entered, forecast, strict=True)]
            if parts is self.rear and not self.branch and self.done[-1] == "verified":
                self.compare(made, left)
            return made[0] if torch.is_tensor(output) else tuple(made)

        hooks = [
            self.network.register_forward_pre_hook(self.called),
            blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
            blocks[cut - 1].register_forward_hook(lambda module, args, output: leave(self.front, output)),
            blocks[cut].register_forward_pre_hook(enter, with_kwargs=True),
            blocks[-1].register_forward_hook(lambda module, args, output: leave(self.rear, output)),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def compare(self, forecast: list[Tensor | None], computed: list[Tensor | None]) -> None:
        """Look how far the forecast is off."""
        there, true = (torch.cat([s.flatten() for s in each if s is not None]) for each in (forecast, computed))
        error = float(((there - true).abs() / (true.abs() + 1e-10)).mean())
        self.errors.append(error)
        self.rejected = error > max(self.policy.base * self.policy.decay ** (self.step / STEPS), self.policy.floor)


def by_hand(key: str, pipe: Any, policy: SpeCa, order: int) -> tuple[Tensor, ByHand]:
    """Return what a pipeline makes with hooks, and what was seen."""
    hand = ByHand(pipe.transformer, policy, order, APART.get(key, 1))
    with hand.hooked():
        return entry(key).call(pipe, steps=STEPS), hand


def done(trace: Trace) -> list[str]:
    """Return what was done at each step of the first branch."""
    found: dict[int, str] = {}
    first = trace.records[0].branch
    for record in trace.records:
        if record.branch == first:
            assert record.index is not None
            found[record.index] = "full" if record.evaluated[0] else "verified" if record.verified else "drafted"
    return list(found.values())


def errors(trace: Trace) -> list[float]:
    """Return the errors that decided, each once."""
    first = trace.records[0].branch
    return [r.score[0] for r in trace.records if r.branch == first and r.place == trace.places[0] and r.score]


@pytest.mark.parametrize("key", TRANSFORMERS)
def test_it_is_what_hooks_compute_and_runs_no_other_block(key):
    """With guidance as the pipeline does it; the limit falls, so that some drafts are rejected and some are not."""
    order = 1 if key in ("wan", "ltx") else 2
    pipe = entry(key).build()
    bare = entry(key).call(pipe, steps=STEPS)
    seen = by_hand(key, pipe, NEVER, order)[1].errors
    policy = evolve(NEVER, base=1.5 * sorted(seen)[len(seen) // 2], decay=0.4, floor=0.0)
    wanted, hand = by_hand(key, pipe, policy, order)
    assert {*hand.done} == {"full", "verified", "drafted"}
    after = [hand.done[step + 1] for step in range(3, STEPS - 1) if hand.done[step] == "verified"]
    assert {*after} == {"full", "verified"}
    with cachepolicies.enable(pipe, policy, substitute=draft(order)) as enabled, counted(pipe.transformer) as counts:
        ours = entry(key).call(pipe, steps=STEPS)
        trace = enabled.trace
        ran = [list(each) for each in counts]
        again = entry(key).call(pipe, steps=STEPS)
        assert torch.equal(again, ours)
        assert done(enabled.trace) == done(trace)
    assert done(trace) == hand.done
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(ours, bare, atol=1e-3)
    # A draft at the last step decides nothing any more.
    decided = hand.errors[: len(hand.errors) - (hand.done[-1] == "verified")]
    torch.testing.assert_close(torch.tensor(errors(trace)), torch.tensor(decided), atol=1e-4, rtol=1e-2)
    full, verified = (hand.done.count(each) for each in ("full", "verified"))
    branches = APART.get(key, 1)
    assert ran == [[full * branches] * (len(ran[0]) - 1) + [full * branches + verified]]
    assert trace.verified_calls == verified
    assert torch.equal(entry(key).call(pipe, steps=STEPS), bare)


@pytest.mark.parametrize("key", TRANSFORMERS)
def test_plain_bit_for_bit_where_nothing_is_drafted(key):
    pipe = entry(key).build()
    bare = entry(key).call(pipe, steps=6)
    for nothing in (SpeCa(most=0), SpeCa(warm_up=6)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cachepolicies.CacheWarning)  # nothing is reused
            with cachepolicies.enable(pipe, nothing, substitute=draft(2)):
                assert torch.equal(entry(key).call(pipe, steps=6), bare)
