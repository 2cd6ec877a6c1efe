"""A policy and a substitute at work without a model: the engine itself, on latents, signals and places that are made.

What is asked of the engine is what a site asks. So everything that it checks is checked, and everything that a policy
or a substitute sees is what it will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import attrs
import hypothesis
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.host import DeclaredTimesteps
from cachepolicies.contracts.policy import CachePolicy, Decision, Grain, Needs
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.engine.call import WHOLE, Arrival, Call, Declaration, EngineSettings
from cachepolicies.engine.engine import Engine, enter
from cachepolicies.engine.trace import CallRecord, Trace
from cachepolicies.profiles.schema import Profile
from cachepolicies.substitutes.hold import Hold
from cachepolicies.testing.strategies import RunPlan

SignalOf: TypeAlias = Callable[[Tensor, float], Tensor]
"""A signal for a bench: from the latent ``(B, ...)`` and t."""

USUAL_SIGNALS = ("modulated_input", "timestep_embedding", "timestep_projection")
"""The signals that adapters know."""


def modulated(x: Tensor, t: float) -> Tensor:
    """Return the latent scaled by t, ``(B, ...)``: what a signal is where nothing else is said."""
    return x * (0.5 + t / 1000.0)


@frozen(eq=False)
class Surroundings:
    """What a policy is tried in.

    Attributes:
        denoiser: ``f(x, t)``, a tensor like x; each row for itself.
        profile: the engine's, or ``None``.
        signals: those there are, by name.
        substitute: what stands in.
    """

    denoiser: Callable[..., Any]
    profile: Profile | None = None
    signals: Mapping[str, SignalOf] = field(factory=dict)
    substitute: Substitute = field(factory=Hold)


@frozen(eq=False)
class PlaceOutput:
    """One place of one call.

    Attributes:
        output: ``(B, ...)`` what was handed on.
        fresh: what was evaluated there: rows (``None`` for all) and what the denoiser returned for them.
    """

    output: Tensor
    fresh: tuple[tuple[Sequence[int] | None, Tensor], ...]


class Bench:
    """One engine, for any number of requests.

    Args:
        policy: resolved.
        around: what it is tried in.
        copies: how often each sample stands in the batch.
        shared: whether branches share a decision.
        places: of a call.
        reached: those of them that a call reaches; all if empty.
        exact: whether a policy gets what it declares and nothing else: of the signals, the input, and the run.
    """

    def __init__(
        self,
        policy: CachePolicy,
        around: Surroundings,
        *,
        copies: int = 1,
        shared: bool = False,
        places: Sequence[str] = (WHOLE,),
        reached: Sequence[str] = (),
        exact: bool = False,
    ) -> None:
        settings = EngineSettings(copies=copies, shared_branches=shared)
        self.around, self.places, self.exact = around, tuple(places), exact
        self.reached = frozenset(reached or places)
        self.engine = Engine(policy, around.substitute, around.profile, settings)

    def request(self, plan: RunPlan) -> BenchRun:
        """Return a request in which a run is begun, declared if the plan is."""
        return BenchRun(self, plan)

    def sampled(self, plan: RunPlan, latents: Latents, branches: Sequence[Sequence[str]] = ()) -> BenchRun:
        """Serve a whole run, and return it; a run that the policy refuses is no example."""
        sampled = self.request(plan)
        for _ in sampled.calls(latents, branches):
            pass
        return sampled


Latents: TypeAlias = Callable[[int, str], Tensor]
"""The latents of a call, from its number and its branch."""


class BenchRun:
    """One run on a bench.

    Attributes:
        outcomes: what was handed on, in order, every place for itself.
    """

    def __init__(self, bench: Bench, plan: RunPlan) -> None:
        self.bench, self.plan = bench, plan
        self._request = bench.engine.request()
        self._request.begin(Declaration(DeclaredTimesteps.of(plan.timesteps)) if plan.declared else None)
        self.outcomes: list[PlaceOutput] = []

    @property
    def trace(self) -> Trace:
        """The record of the run."""
        return self._request.trace

    @property
    def records(self) -> list[CallRecord]:
        """The entries of the trace."""
        return self.trace.records

    def summary(self) -> list[tuple[Any, ...]]:
        """Return what was decided, entry by entry, and why."""
        return [(r.t, r.branch, r.place, r.evaluated, r.reason, r.score, r.tolerance, r.led) for r in self.records]

    def outputs(self) -> list[Tensor]:
        """Return what was handed on, entry by entry."""
        return [one.output for one in self.outcomes]

    def calls(self, latents: Latents, branches: Sequence[Sequence[str]] = ()) -> Iterator[None]:
        """Serve the run call by call; yields behind each, so that runs may take turns.

        Args:
            latents: of a call.
            branches: for every call of the plan, the branches that are called there; ``("default",)`` at all if empty.
        """
        for number, t in enumerate(self.plan.calls):
            for branch in branches[number % len(branches)] if branches else ("default",):
                try:
                    self._serve(latents(number, branch), t, branch, labelled=bool(branches))
                except (SettingsError, NeedsError) as refused:
                    if self.bench.exact and isinstance(refused, NeedsError):
                        raise
                    hypothesis.reject()
                yield

    def _serve(self, x: Tensor, t: float, branch: str, *, labelled: bool) -> None:
        bench, around = self.bench, self.bench.around
        engine = bench.engine
        served = enter(self._request, Call(x, t, branch, labelled, {}))
        names = engine.signals if bench.exact else around.signals.keys() | engine.signals
        for number, place in enumerate(bench.places):
            if place not in bench.reached:
                continue
            given = x + number if number else x
            at = given.detach()
            signals = {name: around.signals.get(name, modulated)(at, t) for name in sorted(names)}
            fresh: list[tuple[Sequence[int] | None, Tensor]] = []

            def evaluate(
                rows: Sequence[int] | None,
                audit: bool,
                given: Tensor = given,
                fresh: list[tuple[Sequence[int] | None, Tensor]] = fresh,
            ) -> Tensor:
                output: Tensor = around.denoiser(given if rows is None else given[list(rows)], t)
                fresh.append((rows, output.clone()))
                return output

            arrival = Arrival(place, at if engine.looks_at_input or not bench.exact else None, signals)
            output = served.serve(arrival, evaluate)
            self.outcomes.append(PlaceOutput(output.clone(), tuple(fresh)))
        served.leave()


class WhyPattern(Reason):
    """Why `Pattern` decides."""

    PATTERN = "the pattern says so"


def _set(values: Iterable[tuple[Any, ...]]) -> frozenset[tuple[Any, ...]]:
    return frozenset(values)


@frozen
class Pattern(CachePolicy):
    """Reuses what it is told to.

    Attributes:
        reused: ``(step, place)`` of what is reused, or ``(step, place, sample)`` where only that sample is.
        grain: whether it decides place by place.
        signals: that it declares.
        branch: the only one that it reuses for; ``None`` for all.
    """

    name: ClassVar[str] = "pattern"

    reused: frozenset[tuple[Any, ...]] = field(default=(), converter=_set)
    grain: Grain = "call"
    signals: tuple[str, ...] = ()
    branch: str | None = None
    see: Callable[[Step], None] | None = field(default=None, repr=False, eq=False)

    @property
    def needs(self) -> Needs:
        """The run length: steps are counted."""
        return Needs(run_length=True, signals=self.signals)

    def decide(self, step: Step, state: None) -> Decision:
        """Look the step up."""
        if self.see is not None:
            self.see(step)
        at, count = (step.index, step.place), step.run.decisions
        own = self.branch is None or step.branch == self.branch
        reuse = tuple(own and (at in self.reused or (*at, sample) in self.reused) for sample in range(count))
        return Decision(reuse, (WhyPattern.PATTERN,) * count)


@frozen(eq=False)
class Watching(CachePolicy):
    """A policy that is watched: whatever it is asked, two functions see what it was asked and what it answered.

    Attributes:
        inner: the policy.
        on_decide: called with policy, step and state; returns the decision.
        on_observe: called with policy, step, decision, output and state; returns the next state.
        on_place: called with policy, step, place, decision, output and state; returns the next state.
        on_verify: called with policy, step, place, what was drafted, what was computed, and state; returns the next.
    """

    inner: CachePolicy
    on_decide: Callable[[CachePolicy, Step, Any], Decision] = lambda policy, step, state: policy.decide(step, state)
    on_observe: Callable[[CachePolicy, Step, Decision, Tensor, Any], Any] = (
        lambda policy, step, decision, output, state: policy.observe(step, decision, output, state)
    )
    on_place: Callable[[CachePolicy, Step, str, Decision, Tensor, Any], Any] = (
        lambda policy, step, place, decision, output, state: policy.observe_place(step, place, decision, output, state)
    )
    on_verify: Callable[[CachePolicy, Step, str, Tensor, Tensor, Any], Any] = (
        lambda policy, step, place, drafted, computed, state: policy.verify(step, place, drafted, computed, state)
    )

    @property
    def name(self) -> str:
        """The policy's."""
        return self.inner.name

    @property
    def needs(self) -> Needs:
        """The policy's."""
        return self.inner.needs

    @property
    def reuses(self) -> bool:
        """The policy's."""
        return self.inner.reuses

    @property
    def grain(self) -> Grain:
        """The policy's."""
        return self.inner.grain

    @property
    def by_branch(self) -> bool:
        """The policy's."""
        return self.inner.by_branch

    def start(self, run: RunInfo) -> Any:
        """Return the policy's state."""
        return self.inner.start(run)

    def decide(self, step: Step, state: Any) -> Decision:
        """Ask the policy."""
        return self.on_decide(self.inner, step, state)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        """Tell the policy."""
        return self.on_observe(self.inner, step, decision, output, state)

    @property
    def observes_places(self) -> bool:
        """Whether the policy does."""
        return self.inner.observes_places

    def observe_place(self, step: Step, place: str, decision: Decision, output: Tensor, state: Any) -> Any:
        """Tell the policy."""
        return self.on_place(self.inner, step, place, decision, output, state)

    @property
    def verifies(self) -> bool:
        """Whether the policy does."""
        return self.inner.verifies

    def verify(self, step: Step, place: str, drafted: Tensor, computed: Tensor, state: Any) -> Any:
        """Tell the policy."""
        return self.on_verify(self.inner, step, place, drafted, computed, state)


class BenchSite(ResolvedSite):
    """Stands for the site in a set-up without a model: says which signals and places there are, and serves nothing."""

    def __init__(
        self, signals: Sequence[str], places: Sequence[str] = (WHOLE,), kinds: Mapping[str, str] | None = None
    ) -> None:
        self._signals, self._places, self._kinds = frozenset(signals), tuple(places), dict(kinds or {})

    @property
    def name(self) -> str:
        """``"bench"``."""
        return "bench"

    @property
    def places(self) -> tuple[str, ...]:
        """Those given."""
        return self._places

    @property
    def signals(self) -> frozenset[str]:
        """Those given."""
        return self._signals

    @property
    def kinds(self) -> Mapping[str, str]:
        """Those given."""
        return self._kinds

    def serve(self, served: Any, invocation: Any) -> Any:
        """Refuse: there is no model here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a bench serves its calls itself")


def only_declared(profile: Profile | None, needs: Needs) -> Profile | None:
    """Return a profile that has the curves and tables that are declared, and no others; ``None`` where none is."""
    if profile is None or not needs.curves | needs.tables:
        return None
    curves = {name: curve for name, curve in profile.curves.items() if name in needs.curves}
    tables = {name: table for name, table in profile.tables.items() if name in needs.tables}
    return attrs.evolve(profile, curves=curves, tables=tables)


def row_by_row(denoiser: Callable[..., Any]) -> Callable[[Tensor, float], Tensor]:
    """Return a denoiser that computes every row alone, so that a row's bits do not depend on its batch."""

    def f(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return torch.cat([denoiser(row[None], t) for row in x])

    return f
