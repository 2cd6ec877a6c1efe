"""The engine's face: what both ways in open requests with, and what a site asks while the model's forward runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from cachepolicies.base.errors import PolicyError, RunError
from cachepolicies.base.foreign import writes_so_far
from cachepolicies.base.host import without_gradient
from cachepolicies.base.parallel import context_parallel, why_not_parallel
from cachepolicies.contracts.policy import CachePolicy, Decision
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.substitute import Context, Substitute
from cachepolicies.engine import check
from cachepolicies.engine.call import WHOLE, Arrival, Call, Declaration, EngineSettings, Evaluate, Exchange
from cachepolicies.engine.choice import Chosen
from cachepolicies.engine.invocation import Invocation
from cachepolicies.engine.lifecycle import Request
from cachepolicies.engine.loop import carried_out, evaluated, served_place
from cachepolicies.engine.memory import Key, finite_rows
from cachepolicies.engine.run import DecisionGroup, Run
from cachepolicies.engine.trace import CallRecord
from cachepolicies.engine.turn import Turn
from cachepolicies.engine.watch import Watch
from cachepolicies.profiles.schema import Profile

ALL = "(all)"
"""In the key of a decision group: all branches, or all places, follow it."""


def _no_notes(info: RunInfo) -> Sequence[str]:
    return ()


@frozen(eq=False)
class Engine:
    """One policy with its substitute, for any number of requests; but for `warned`, nothing in it changes during a run.

    Attributes:
        policy: when to reuse, resolved.
        substitute: what stands in, resolved.
        profile: what calibration measured, or ``None``.
        settings: how batches and branches are treated.
        parts_rows: whether the site can evaluate some rows of a batch without the others.
        shares: of the uncached work of a call that a reuse of each place skips; the site fills it in as it measures.
        notes: returns what to say in the trace of a run that begins.
        warned: kinds of the warnings that were given; each is given once, whichever request it is about.
        watch: looks on at one run, ``None`` for nobody; an engine with a watch serves that run only.
        network: the module inside of the denoiser, where it is known.
        reuses: whether the policy ever does; if not, nothing is remembered and no tensor looked at.
        signals: names of those that policy or substitute declare.
        looks: whether latents are looked at: something may be reused, or somebody looks on.
        passes: whether calls pass through as they are: nothing is looked at, not by the policy either.
        by_place: whether the policy decides place by place.
        by_branch: whether every branch decides for itself.
        kept_signals: names of the signals that are kept with each refresh.
        observes_places: whether it decides once a call, and is told what flowed at every place.
        looks_at_input: whether policy or substitute look at what goes into a place.
        keeps_outputs_only: whether the substitute needs nothing but outputs, and changes no evaluation.
        recalls: whether what flowed on is kept for the substitute.
        verifies_in_calls: whether the policy decides once a call, and may have places verified.
        tells_of_places: whether policy or watch are told what flows on from every place.
    """

    policy: CachePolicy
    substitute: Substitute
    profile: Profile | None
    settings: EngineSettings
    parts_rows: bool = True
    shares: Mapping[str, float] = field(factory=dict)
    notes: Callable[[RunInfo], Sequence[str]] = _no_notes
    warned: set[str] = field(factory=set, repr=False)
    watch: Watch | None = field(default=None, repr=False)
    network: nn.Module | None = field(default=None, repr=False)
    # Asked at every call, and the same at every call.
    reuses: bool = field(init=False, repr=False)
    signals: frozenset[str] = field(init=False, repr=False)
    looks: bool = field(init=False, repr=False)
    passes: bool = field(init=False, repr=False)
    by_place: bool = field(init=False, repr=False)
    by_branch: bool = field(init=False, repr=False)
    observes_places: bool = field(init=False, repr=False)
    kept_signals: frozenset[str] = field(init=False, repr=False)
    looks_at_input: bool = field(init=False, repr=False)
    keeps_outputs_only: bool = field(init=False, repr=False)
    recalls: bool = field(init=False, repr=False)
    verifies_in_calls: bool = field(init=False, repr=False)
    tells_of_places: bool = field(init=False, repr=False)

    @reuses.default
    def _reuses_of_policy(self) -> bool:
        return self.policy.reuses

    @signals.default
    def _declared_signals(self) -> frozenset[str]:
        return self.policy.needs.signals | self.substitute.signals

    @looks.default
    def _looked_at(self) -> bool:
        return self.reuses or self.watch is not None

    @passes.default
    def _passed_through(self) -> bool:
        return not self.looks and type(self.policy).observe is CachePolicy.observe

    @by_place.default
    def _grain_of_policy(self) -> bool:
        return self.policy.grain == "place"

    @by_branch.default
    def _branches_part(self) -> bool:
        return self.policy.by_branch or not self.settings.shared_branches

    @observes_places.default
    def _watched_places(self) -> bool:
        return self.policy.observes_places and not self.by_place

    @kept_signals.default
    def _signals_beside_refreshes(self) -> frozenset[str]:
        return self.substitute.keeps_signals

    @looks_at_input.default
    def _wanted_inputs(self) -> bool:
        return self.policy.needs.input or self.substitute.wants_input

    @keeps_outputs_only.default
    def _nothing_beside_outputs(self) -> bool:
        substitute = self.substitute
        more = substitute.wants_input or substitute.wants_branches or substitute.corrects
        return not more and not substitute.keeps_signals

    @recalls.default
    def _wanted_past(self) -> bool:
        return self.reuses and self.substitute.recalls > 0

    @verifies_in_calls.default
    def _verified_with_the_call(self) -> bool:
        return self.policy.verifies and not self.by_place

    @tells_of_places.default
    def _who_is_told(self) -> bool:
        return self.observes_places or self.watch is not None

    @property
    def latest(self) -> Engine:
        """The engine itself: it is the same for every run."""
        return self

    @property
    def sentence(self) -> str:
        """Nothing: it is what the user said."""
        return ""

    def choose(self, call: Call, declaration: Declaration | None) -> Chosen:
        """Return the engine itself, whatever the run."""
        return Chosen(self)

    def unexpected(self, engine: Engine) -> Engine:
        """Return the engine itself: nothing is expected of a run."""
        return self

    def request(self) -> Request:
        """Return a new request, before its first run."""
        return Request(self)


def enter(request: Request, call: Call) -> ServedCall:
    """Begin to serve a call of a request.

    Raises:
        InputError, RunError, NeedsError: see `Request.enter`. Nothing of the run is remembered then.
    """
    try:
        _refuse_parallel(request)
        run = request.enter(call)
        if request.engine.looks:
            run.note_conditioning(call)
    except BaseException:
        request.reset()
        raise
    if run.full is not None and call.full is None:
        call = evolve(call, full=run.full)
    index = run.index(call)
    given, version = call.x, writes_so_far(call.x)
    if request.engine.looks and run.writes_input is not False and not given.requires_grad:
        # The model may write on what it is handed; policies look at the latent after it has run, and keep it.
        call = evolve(call, x=given.clone())
    return ServedCall(request.engine, request, run, call, index, request.next_call(), given, version)


def _refuse_parallel(request: Request) -> None:
    """Refuse a network that was made parallel after it was enabled.

    Raises:
        RunError: it was, and the policy reuses.
    """
    engine = request.engine
    if engine.network is not None and engine.reuses:
        ranks = context_parallel(engine.network)
        if ranks > 1:
            raise RunError(why_not_parallel(engine.network, ranks))


@define(eq=False)
class ServedCall:
    """One call being served: what a site asks as the model's forward reaches its places.

    Attributes:
        engine: decides, remembers and records.
        request: that the call belongs to.
        run: that the call belongs to.
        call: where the denoiser is called.
        index: step of the run, or ``None`` when it was not declared.
        number: of the call in its run.
        given: the latent itself; that of the call is a copy where the model may write on it.
        version: how often the latent had been written on.
    """

    engine: Engine
    request: Request
    run: Run
    call: Call
    index: int | None
    number: int
    given: Tensor
    version: int
    _group: DecisionGroup | None = field(default=None, init=False, repr=False)
    _entering: Sequence[bool] | None = field(default=None, init=False, repr=False)

    @property
    def rows_may_part(self) -> bool:
        """Whether some rows of the batch may be evaluated without the others."""
        return self.engine.reuses and self.run.info.decisions > 1

    def entering(self) -> Sequence[bool]:
        """Return for every row of the latent whether it is finite, as far as the host sees it; once a call."""
        if self._entering is None:
            self._entering = finite_rows(self.call.x)
        return self._entering

    def wanted_signals(self, place: str = WHOLE) -> frozenset[str]:
        """Return the names of the signals that will be looked at; not the policy's where it will not be asked."""
        signals = self.engine.signals
        if not signals:
            return signals
        followed = self.group(place).follows(self.call.t, self.key(place))
        if followed is None or self.verifies(place, followed):
            return signals
        return self.engine.substitute.signals

    def verifies(self, place: str, decision: Decision) -> bool:
        """Return whether what is reused at a place is computed all the same, for the policy to compare."""
        if not decision.verify or place not in decision.verify or True not in decision.reuse:
            return False
        return self.group(place).branch == self.call.branch

    def exchange(self, arrival: Arrival) -> Exchange:
        """Serve one place by reverse communication. Closed before it has returned, it counts as failed.

        Raises:
            InputError, RunError, NeedsError, PolicyError: see their messages. After any exception nothing of the run is
                remembered.
        """
        try:
            return (yield from served_place(self, arrival))
        except BaseException:
            self.request.reset()
            raise

    def ask(self, arrival: Arrival) -> Turn:
        """Decide on a place without serving it yet; `take` or `carry_out` follows, or `fail`.

        Raises:
            InputError, RunError, NeedsError, PolicyError: as `exchange`.
        """
        engine, run, call = self.engine, self.run, self.call
        key, group = (call.branch, arrival.place), self._group or self.group(arrival.place)
        wanted = group.follows(call.t, key)
        led = wanted is None
        step = self.step(arrival) if led or engine.tells_of_places else None
        if wanted is None:
            wanted = check.decided(engine.policy, _told(step), group.state)
            group.point, group.t, group.served = run.next_point(), call.t, set()
            group.branch = call.branch
        # Nothing is cached for a policy that never reuses, and there is nothing to look at.
        decision = check.sound(run, group, call, key, wanted, self.entering) if engine.reuses else wanted
        if led:
            group.decision = decision  # places inside of this one come before it is concluded, and follow it
        return Turn(arrival, key, group, decision, True not in decision.reuse, step, led)

    def take(self, turn: Turn, output: Tensor) -> Tensor:
        """Serve a place that is evaluated as a whole with its evaluation; raises as `exchange`.

        Args:
            turn: what was decided; its ``whole`` is true.
            output: ``(B, ...)`` the evaluation.

        Returns:
            ``(B, ...)`` what flows on: the evaluation itself, unless the substitute corrects it.
        """
        engine, run, call, decision = self.engine, self.run, self.call, turn.decision
        output = check.evaluated(output, run.info.layout.rows)
        if engine.keeps_outputs_only and engine.reuses and call.full is None and not turn.arrival.read_only:
            run.memory.remember_whole(turn.key, output, call.t, turn.group.point)
        else:
            output = evaluated(self, turn, output, None)
        self.conclude(turn, output)
        self.request.trace.records.append(
            CallRecord(
                call.t,
                call.branch,
                (True,) * len(decision.reuse),
                decision.reason,
                decision.score,
                decision.tolerance,
                turn.led,
                self.index,
                True,
                call=self.number,
                place=turn.arrival.place,
            )
        )
        return output

    def conclude(self, turn: Turn, output: Tensor) -> None:
        """Tell the policy, and who looks on, what flows on from a place that was served."""
        engine, group, decision, step = self.engine, turn.group, turn.decision, turn.step
        if turn.led:
            group.conclude(decision, engine.policy.observe(_told(step), decision, output, group.state))
        group.served.add(turn.key)
        if engine.recalls and self.call.full is None:
            self.run.memory.note_passed(turn.key, self.call.t, output, turn.arrival.input)
        if not engine.tells_of_places:
            return
        if engine.observes_places and group.branch == self.call.branch:
            group.state = engine.policy.observe_place(_told(step), turn.arrival.place, decision, output, group.state)
        if engine.watch is not None:
            engine.watch.served(_told(step), decision, output)

    def carry_out(self, turn: Turn) -> Exchange:
        """Serve a place that was decided on; as `exchange`."""
        try:
            return (yield from carried_out(self, turn))
        except BaseException:
            self.fail()
            raise

    def fail(self) -> None:
        """Forget the run: serving a place has failed."""
        self.request.reset()

    def serve(self, arrival: Arrival, evaluate: Evaluate) -> Tensor:
        """Serve one place with a function that evaluates it; raises as `exchange`.

        Returns:
            ``(B, ...)`` the caller may change it in place. If every row was evaluated it is the model's own tensor.
        """
        exchange = self.exchange(arrival)
        answer: Tensor | None = None
        try:
            while True:
                try:
                    wanted = next(exchange) if answer is None else exchange.send(answer)
                except StopIteration as done:
                    output: Tensor = done.value
                    return output
                answer = evaluate(wanted.rows, wanted.audit)
        finally:
            exchange.close()

    def pass_through(self) -> None:
        """Record a call of which nothing is looked at: the denoiser runs as it would without a cache.

        A policy that never reuses is asked, and its decision recorded; it is told nothing of the outputs.
        """
        call, group, key = self.call, self.group(WHOLE), self.key(WHOLE)
        led = group.t != call.t or key in group.served
        decision = group.decision
        if led or decision is None:
            decision = check.decided(self.engine.policy, self.step(Arrival()), group.state)
            group.t, group.served, group.decision = call.t, set(), decision
        group.served.add(key)
        record = CallRecord(
            call.t,
            call.branch,
            (True,) * len(decision.reuse),
            decision.reason,
            decision.score,
            decision.tolerance,
            led,
            self.index,
            True,
            call=self.number,
        )
        self.request.trace.records.append(record)
        self.leave()

    def leave(self) -> None:
        """End the call, after its last place: the next one is told by what this one was.

        Raises:
            PolicyError: a place that was to be verified was not reached.
        """
        if self.engine.verifies_in_calls:
            self._check_verified()
        if self.run.writes_input is None and self.engine.looks:
            self.run.writes_input = self._was_written_on()
        self.run.note_call(self.call, self.given)

    def _check_verified(self) -> None:
        group, call = self.group(WHOLE), self.call
        if group.decision is None or group.t != call.t or group.branch != call.branch:
            return
        missed = [place for place in group.decision.verify if self.key(place) not in group.served]
        if missed and True in group.decision.reuse:
            reached = ", ".join(sorted(repr(place) for branch, place in group.served if branch == call.branch))
            raise PolicyError(
                f"policy {self.engine.policy.name!r} wants {missed[0]!r} to be verified, and the call reached no such "
                f"place; it reached {reached}"
            )

    def _was_written_on(self) -> bool:
        if self.given.is_inference():  # which does not count: compared once a run
            return self.given is not self.call.x and not torch.equal(self.given, self.call.x)
        return writes_so_far(self.given) != self.version

    def look(self, invocation: Invocation) -> None:
        """Let who looks on at the run see the call that was served; what that evaluates is counted in the trace."""
        if self.engine.watch is not None:
            try:
                self.request.trace.measurements += self.engine.watch.called(self.call, invocation)
            except BaseException:
                self.request.reset()
                raise

    def keep(self, place: str, value: Any) -> None:
        """Keep something of the site's between the calls of this branch, until the run ends."""
        self.run.kept[self.key(place)] = value

    def kept(self, place: str) -> Any:
        """Return what the site kept last for this branch, ``None`` if nothing."""
        return self.run.kept.get(self.key(place))

    def key(self, place: str) -> Key:
        """Return the key of the memory at a place."""
        return self.call.branch, place

    def group(self, place: str) -> DecisionGroup:
        """Return what decides at a place: one for all branches or for this one, one for all places or for this one."""
        key = (
            self.call.branch if self.engine.by_branch else ALL,
            place if self.engine.by_place else ALL,
        )
        found = self.run.groups.get(key)
        if found is None:
            info = self.run.info
            found = self.run.groups[key] = DecisionGroup(self.engine.policy.start(info), [-1] * info.decisions)
        if not self.engine.by_place:
            self._group = found
        return found

    def step(self, arrival: Arrival) -> Step:
        """Return what the policy is told."""
        call, run = self.call, self.run
        place = arrival.place if self.engine.by_place else WHOLE
        read, given = run.memory.read, None if arrival.input is None else without_gradient(arrival.input)
        return Step(
            without_gradient(call.x), call.t, call.branch, self.index, run.info, read, arrival.signals, place, given
        )

    def context(self, arrival: Arrival, copies: Mapping[str, Tensor] | None = None) -> Context:
        """Return what the substitute is told of the present.

        Args:
            arrival: the place.
            copies: ``(B, ...)`` what the copies of the batch returned that were evaluated, by name.
        """
        call = self.call
        others = self.run.memory.present(self.key(arrival.place), call.t)
        if copies:
            others = {**others, **copies}
        return Context(
            call.t,
            call.x,
            arrival.input,
            arrival.signals,
            others,
            call.branch,
            arrival.place,
            self.index,
            call.conditioning,
            self.run.info.timesteps,
            *self.run.memory.passed(self.key(arrival.place)),
        )


def _told(step: Step | None) -> Step:
    assert step is not None  # it is made where somebody is told
    return step
