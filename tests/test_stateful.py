"""Whatever generations are in flight, however they take turns, fail and end: each gives what it gives alone.

``make stateful`` tries 3000 generations; here is a short version. A generation is a script of calls; it is driven by a
generator, a thread, an asyncio task, or through the handle of its run. What it gave is compared bit for bit with the
same script on a fresh object with nothing beside it.
"""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
from typing import Any

import pytest
import torch
from attrs import frozen
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from cachepolicies import CachedDenoiser, CachePolicy, Decision, Limits, Reason, RunInfo, Setup, Site, Step, enable
from cachepolicies.adapters import adapter_of, blocks_of
from cachepolicies.contracts import Grain
from cachepolicies.sites import ModulesSite
from in_flight import (
    ByGenerator,
    ByHandle,
    ByTask,
    ByThread,
    FailedError,
    InFlight,
    Interrupted,
    Network,
    Script,
    network,
)
from made_profiles import linear_profile

TIMESTEPS = tuple(1000.0 - 100.0 * k for k in range(8))
GENERATIONS = int(os.environ.get("CACHEPOLICIES_GENERATIONS", "150"))
"""How many generations are tried."""


class Why(Reason):
    """Reasons of the policy below."""

    ODD = "an odd place"
    TURN = "its turn"


@frozen
class OddPlaces(CachePolicy):
    """Hold every second place at every second call."""

    name = "odd-places"

    @property
    def grain(self) -> Grain:
        return "place"

    def start(self, run: RunInfo) -> bool:
        return True

    def decide(self, step: Step, state: bool) -> Decision:
        odd = step.place.endswith(("1", "3"))
        return Decision.same(odd and not state, Why.ODD if odd else Why.TURN, step.run.decisions)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: bool) -> bool:
        return decision.reuse[0]


@frozen
class EveryBlock(Site):
    """Every block is a place."""

    name = "every-block"

    def resolve(self, setup: Setup) -> ModulesSite:
        net = setup.network_for(self.name)
        return ModulesSite(
            self.name, net, {path: block for path, (block, _) in blocks_of(net, adapter_of(net)).items()}
        )


PROFILE = linear_profile(TIMESTEPS, class_name="Network")
POLICIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "never": ("never", {}),
    "uniform": ("uniform:every=3", {}),
    "schedule": ("schedule:refreshes=[0,1,4,6]", {}),
    "sencache": ("sencache:epsilon=0.3,epsilon_start=0.3,max_reuse=2,score=bound", {"profile": PROFILE}),
    "sencache, no end": ("sencache:epsilon=1e9,epsilon_start=1e9,max_reuse=3,score=bound", {"profile": PROFILE}),
    "magcache": (f"magcache:ratios={[1.0] + [0.97] * 7},retention_ratio=0.0,lookup=index,threshold=0.1", {}),
    "limited": ("uniform:every=4", {"limits": Limits(max_reuse=2, protect_last=1)}),
    "odd places": (OddPlaces(), {"site": EveryBlock()}),
}
UNDECLARED = ("never", "sencache", "sencache, no end", "odd places")


@frozen
class Setting:
    """A way to cache, and the fresh object that it makes."""

    policy: str
    substitute: str
    site: Any
    in_place: bool
    shared: bool

    def made(self) -> tuple[Any, Any]:
        """Return what has ``run``, and what is called."""
        policy, options = POLICIES[self.policy]
        options = {"site": self.site, "substitute": self.substitute} | options
        options["branches"] = "shared" if self.shared else "independent"
        net = network()
        if self.in_place:
            return enable(net, policy, **options), net
        denoiser = CachedDenoiser(net, policy, **options)
        return denoiser, denoiser


def alone(setting: Setting, script: Script, calls: int) -> list[Tensor | str]:
    """Return what the first calls of a script give on a fresh object with nothing beside it."""
    subject, call = setting.made()
    flight = ByGenerator(subject, call, script)
    for _ in range(calls):
        flight.advance()
    flight.close()
    return flight.found


def same(one: Tensor | str, other: Tensor | str) -> bool:
    return (
        torch.equal(one, other)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else one is other or one == other
    )


class Server(RuleBasedStateMachine):
    """One wrapper or enabled module, and the generations on it."""

    generations = 0

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        substitute=st.sampled_from(["hold", "linear:time=t", "quadratic:time=t"]),
        site=st.sampled_from(["output", "blocks", "blocks.1", EveryBlock()]),
        in_place=st.booleans(),
        shared=st.booleans(),
    )
    def set_up(self, policy: str, substitute: str, site: Any, in_place: bool, shared: bool) -> None:
        self.setting = Setting(policy, substitute, site, in_place, shared)
        self.subject, self.call = self.setting.made()
        self.loop = asyncio.new_event_loop()
        self.flights: list[InFlight] = []
        self.undeclared_here = 0

    @precondition(lambda self: len(self.flights) < 5)
    @rule(
        kind=st.sampled_from(["generator", "handle", "thread", "task"]),
        seed=st.integers(0, 99),
        rows=st.integers(1, 3),
        branches=st.sampled_from([(None,), ("cond", "uncond"), ("uncond", "cond", "perturbed")]),
        left_out=st.sets(st.integers(0, 7), max_size=3),
        declared=st.booleans(),
        jump=st.none() | st.integers(1, 6),
        reshape=st.none() | st.integers(1, 6),
        boom=st.none() | st.tuples(st.integers(0, 7), st.sampled_from([FailedError, Interrupted])),
    )
    def begin(self, kind: str, branches: Any, left_out: set[int], declared: bool, **rest: Any) -> None:
        """Begin a generation. In place, branches are not named; an undeclared one has a thread or task to itself."""
        if self.setting.in_place:
            branches = (None,)
        if kind in ("generator", "handle") or self.setting.policy not in UNDECLARED:
            declared = True
        script = Script(timesteps=TIMESTEPS, branches=branches, left_out=frozenset(left_out), declared=declared, **rest)
        parts = (self.subject, self.call, script)
        if kind == "task":
            self.flights.append(ByTask(*parts, self.loop))
        else:
            self.flights.append({"generator": ByGenerator, "handle": ByHandle, "thread": ByThread}[kind](*parts))

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 4), calls=st.integers(1, 4))
    def advance(self, which: int, calls: int) -> None:
        """Let a generation make some calls; at its end, judge it."""
        flight = self.flights[which % len(self.flights)]
        for _ in range(calls):
            if not flight.over:
                flight.advance()
        if flight.over:
            self.flights.remove(flight)
            self.judge(flight)

    @precondition(lambda self: self.flights)
    @rule(which=st.integers(0, 4))
    def break_off(self, which: int) -> None:
        """Give a generation up in the middle; what it gave so far is judged."""
        flight = self.flights.pop(which % len(self.flights))
        flight.close()
        self.judge(flight)

    @precondition(lambda self: not self.setting.in_place)
    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle"]))
    def copy(self, how: str) -> None:
        """Go on with a copy; the generations in flight stay with the original."""
        if how == "pickle" and not isinstance(POLICIES[self.setting.policy][0], str):
            how = "deepcopy"
        made = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda d: pickle.loads(pickle.dumps(d))}
        self.subject = self.call = made[how](self.subject)

    @precondition(lambda self: self.setting.in_place is False)
    @rule(seed=st.integers(0, 99))
    def bare_call(self, seed: int) -> None:
        """Somebody calls the network itself, which nothing that is in flight changes."""
        net, x = self.subject.model, torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(net(x, 500.0), network()(x, 500.0))

    @invariant()
    def nothing_is_left_on_the_blocks(self) -> None:
        if hasattr(self, "subject") and not self.setting.in_place:
            assert all(type(block).__mro__[1].__name__ != "_Gated" for block in self.subject.model.blocks)

    def judge(self, flight: InFlight) -> None:
        Server.generations += 1
        wanted = alone(self.setting, flight.script, len(flight.found))
        assert len(wanted) == len(flight.found)
        for number, (found, right) in enumerate(zip(flight.found, wanted, strict=True)):
            assert same(found, right), f"call {number} of {flight.script}"

    def teardown(self) -> None:
        for flight in getattr(self, "flights", []):
            flight.close()
            self.judge(flight)
        if hasattr(self, "loop"):
            self.loop.close()


@pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")
@torch.no_grad()
def test_every_generation_gives_what_it_gives_alone() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Server.generations = 0
    per_example = 6  # about as many as there are in one
    run_state_machine_as_test(
        Server,
        settings=settings(
            max_examples=max(1, GENERATIONS // per_example),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Server.generations >= GENERATIONS


def test_the_network_is_the_same_every_time() -> None:
    one, other = network(), network()
    assert isinstance(one, Network)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
