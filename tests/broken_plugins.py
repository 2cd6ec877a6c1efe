"""Plugins that break one promise each, by the property that catches them; beside each, a sound one that breaks none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from cachepolicies import (
    CachePolicy,
    Context,
    Decision,
    Needs,
    Reason,
    Refresh,
    Score,
    ScoreSettings,
    Setup,
    Signal,
    SignalInput,
    Site,
    Step,
    Substitute,
    ToleranceSchedule,
)
from cachepolicies.contracts.adapter import Adapter, Blocks
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.contracts.substitute import Extrapolation, Prediction
from cachepolicies.registry.registry import Entry, Registry, Source
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.sites import Arrival, ModulesSite
from cachepolicies.testing import (
    Check,
    Subject,
    adapter_checks,
    block_subject,
    policy_checks,
    scheduler_checks,
    score_checks,
    signal_checks,
    site_checks,
    substitute_checks,
    tolerance_checks,
)
from cachepolicies.testing.denoisers import BlockNetwork, adapter_of_blocks

ANY = frozenset({"(any)"})
"""The fault is one of form: whatever looks at the object meets it."""


@frozen(eq=False)
class Broken:
    """A broken object.

    Attributes:
        kind: of its suite.
        name: of the property that is to catch it.
        checks: of the object.
        also: further properties that cannot but meet the same fault; `ANY` for all.
    """

    kind: str
    name: str
    checks: Callable[[], list[Check]]
    also: frozenset[str] = field(default=frozenset(), converter=frozenset)


BROKEN: list[Broken] = []


def broken(kind: str, name: str, also=(), **options):
    """Register what a class makes as broken."""
    makers: dict[str, Callable[..., list[Check]]] = {
        "policy": policy_checks,
        "substitute": substitute_checks,
        "site": site_checks,
        "tolerance schedule": tolerance_checks,
        "score": score_checks,
        "signal": signal_checks,
        "scheduler": scheduler_checks,
    }
    of = makers[kind]

    def add(make):
        BROKEN.append(Broken(kind, name, lambda: of(make(), **options), also))
        return make

    return add


Box: Any = field(factory=dict, init=False, eq=False, repr=False)
"""A place to hide state in."""


# -- policies ----------------------------------------------------------------------------------------------------------


class Why(Reason):
    ROOM = "room for one more"
    FULL = "full"


@frozen
class Sound(CachePolicy):
    """Reuses at most twice in a row; counts in its state, one entry a decision."""

    name: ClassVar[str] = "sound"
    most: int = 2

    def start(self, run):
        return (self.most,) * run.decisions

    def decide(self, step: Step, state: Any) -> Decision:
        return self.of(step, tuple(n < self.most for n in state))

    def observe(self, step, decision, output, state):
        return tuple(n + 1 if again else 0 for n, again in zip(state, decision.reuse, strict=True))

    def of(self, step: Step, reuse: tuple[bool, ...]) -> Decision:
        return Decision(reuse, tuple(Why.ROOM if again else Why.FULL for again in reuse))


@broken("policy", "has_a_name")
@frozen
class TwoWords(Sound):
    name: ClassVar[str] = "two words"


@broken("policy", "settings_are_frozen")
@define
class Thawed(Sound):
    name: ClassVar[str] = "thawed"
    __setattr__ = object.__setattr__


@broken("policy", "settings_print")
@frozen(repr=False)
class Unprintable(Sound):
    __repr__ = object.__repr__


@broken("policy", "settings_equal_their_copies")
@frozen(eq=False)
class OnlyItself(Sound):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@frozen
class Doubling(Sound):
    name: ClassVar[str] = "doubling"
    most: int = field(default=1, converter=lambda value: 2 * value)


def _doubling() -> list[Check]:
    registry: Registry[Any] = Registry("policy")
    registry = registry.extended([Entry("doubling", Doubling, Source("here", "1"))])
    checks = policy_checks(Doubling(3))
    return [evolve(check, case=evolve(check.case, registry=registry)) for check in checks]


BROKEN.append(Broken("policy", "a_spec_makes_it_again", _doubling))


@broken("policy", "resolving_leaves_the_settings")
@frozen
class CountsItsSetups(Sound):
    setups: int = 0

    def resolve(self, setup):
        object.__setattr__(self, "setups", self.setups + 1)
        return self


@broken("policy", "declares_soundly")
@frozen
class OddGrain(Sound):
    grain: Any = "row"


@broken("policy", "where_it_never_reuses_it_is_the_bare_model", ANY)
@frozen
class SaysNever(Sound):
    @property
    def reuses(self):
        return False


@broken("policy", "has_one_entry_for_each_decision", ANY)
@frozen
class OneForAll(Sound):
    def decide(self, step, state):
        return self.of(step, (False,))


@broken("policy", "gives_reasons_that_are_members", ANY)
@frozen
class Phrases(Sound):
    def decide(self, step, state):
        return Decision((False,) * step.run.decisions, ("full",) * step.run.decisions)


@broken("policy", "gives_scores_that_are_numbers")
@frozen
class NoTolerance(Sound):
    def decide(self, step, state):
        count = step.run.decisions
        return evolve(super().decide(step, state), score=(1.0,) * count, tolerance=(float("nan"),) * count)


@broken("policy", "decides_the_same_when_asked_twice")
@frozen
class ChangesItsMind(Sound):
    box: dict = Box

    def decide(self, step, state):
        again = self.box.get("asked") is step
        self.box["asked"] = step
        return self.of(step, (again,) * step.run.decisions)


@broken("policy", "never_changes_a_state")
@frozen
class InPlace(Sound):
    def start(self, run):
        return [self.most] * run.decisions

    def observe(self, step, decision, output, state):
        state[:] = [n + 1 if again else 0 for n, again in zip(state, decision.reuse, strict=True)]
        return state


@broken("policy", "never_changes_what_it_sees")
@frozen
class Scribbles(Sound):
    def observe(self, step, decision, output, state):
        output.add_(1e-3)
        return super().observe(step, decision, output, state)


@broken("policy", "keeps_no_tensor_of_the_caller")
@frozen
class KeepsTheLatent(Sound):
    def start(self, run):
        return None

    def decide(self, step, state):
        far = [0.0] * step.run.decisions if state is None else step.rms(step.x - state)
        return self.of(step, tuple(one > 10.0 for one in far))

    def observe(self, step, decision, output, state):
        return step.x


@frozen
class Verifies(Sound):
    """Has what it reuses verified."""

    def decide(self, step, state):
        return evolve(self.of(step, tuple(n < self.most for n in state)), verify=("",))


@broken("policy", "never_changes_a_state")
@frozen
class InPlaceAtLast(Verifies):
    def observe(self, step, decision, output, state):
        return list(super().observe(step, decision, output, state))

    def verify(self, step, place, drafted, computed, state):
        state[:] = [n + 1 for n in state]
        return state


@broken("policy", "never_changes_what_it_sees")
@frozen
class ScribblesAtLast(Verifies):
    def verify(self, step, place, drafted, computed, state):
        computed.mul_(2.0)
        return state


@broken("policy", "keeps_no_tensor_of_the_caller")
@frozen
class KeepsTheDraft(Verifies):
    def start(self, run):
        return None

    def decide(self, step, state):
        far = [0.0] * step.run.decisions if state is None else step.rms(step.x - state)
        return evolve(self.of(step, tuple(one < 10.0 for one in far)), verify=("",))

    def observe(self, step, decision, output, state):
        return state

    def verify(self, step, place, drafted, computed, state):
        return drafted


@broken("policy", "a_batch_decides_as_its_samples")
@frozen
class AloneOnly(Sound):
    def decide(self, step, state):
        return self.of(step, (step.run.decisions == 1,) * step.run.decisions)


@broken("policy", "a_bad_row_does_not_touch_the_others")
@frozen
class AllOrNone(Sound):
    def decide(self, step, state):
        if not torch.isfinite(step.x).all():
            return self.of(step, (False,) * step.run.decisions)
        return super().decide(step, state)


@broken(
    "policy",
    "runs_do_not_see_each_other",
    {"requests_in_turn_do_not_see_each_other", "branches_do_not_see_each_other"},
)
@frozen
class OnlyOnce(Sound):
    """Reuses in its first run only."""

    box: dict = Box

    def start(self, run):
        self.box["runs"] = self.box.get("runs", 0) + 1
        return (0,) * run.decisions

    def decide(self, step, state):
        return self.of(step, (self.box["runs"] == 1,) * step.run.decisions)


@frozen
class Remembering(Sound):
    """Counts in a memory of its own, which it clears when a run begins; `key` says for what there is one memory."""

    box: dict = Box

    def start(self, run):
        return 0

    def key(self, step: Step) -> Any:
        raise NotImplementedError

    def decide(self, step, state):
        seen = self.box.get(self.key(step), 0) if state else 0
        return self.of(step, (seen % 2 == 1,) * step.run.decisions)

    def observe(self, step, decision, output, state):
        self.box[self.key(step)] = (self.box.get(self.key(step), 0) if state else 0) + 1
        return state + 1


@broken("policy", "requests_in_turn_do_not_see_each_other")
@frozen
class ForAllRequests(Remembering):
    def key(self, step):
        return step.branch, step.place


@broken("policy", "branches_do_not_see_each_other")
@frozen
class ForAllBranches(Remembering):
    def key(self, step):
        return step.run, step.place


@broken("policy", "places_do_not_see_each_other")
@frozen
class ForAllPlaces(Remembering):
    @property
    def grain(self):
        return "place"

    def key(self, step):
        return step.run, step.branch


@broken("policy", "works_with_what_it_declares")
@frozen
class Peeks(Sound):
    def decide(self, step, state):
        assert step.signals["modulated_input"].shape[0] == step.x.shape[0]
        return super().decide(step, state)


@broken("policy", "takes_any_run")
@frozen
class NoSecondCalls(Sound):
    def start(self, run):
        return ()

    def decide(self, step, state):
        if step.t in state:
            raise ValueError(f"t={step.t} again")
        return self.of(step, (False,) * step.run.decisions)

    def observe(self, step, decision, output, state):
        return (*state, step.t)


@broken("policy", "takes_any_dtype")
@frozen
class ByNumpy(Sound):
    def decide(self, step, state):
        step.x.numpy()
        return super().decide(step, state)


# -- substitutes -------------------------------------------------------------------------------------------------------


@frozen
class Last(Substitute):
    name: ClassVar[str] = "last"
    history: ClassVar[int] = 2

    def predict(self, context: Context, history) -> Tensor | Prediction:
        return history[0].output.clone()


@broken("substitute", "declares_soundly")
@frozen
class TooGuarded(Last):
    @property
    def guard(self):
        return 0.5


@broken("substitute", "keeps_shape_and_dtype")
@frozen
class InFloat(Last):
    def predict(self, context, history):
        return history[0].output.float()


@broken("substitute", "leaves_what_is_remembered")
@frozen
class AddsUp(Last):
    def predict(self, context, history):
        return history[0].output.add_(1.0).clone()


@broken("substitute", "predicts_the_same_again", {"rows_have_histories_of_their_own"})
@frozen
class Grows(Last):
    box: dict = Box

    def predict(self, context, history):
        self.box["asked"] = self.box.get("asked", 0) + 1
        return history[0].output + self.box["asked"]


@broken("substitute", "hands_out_memory_of_its_own")
@frozen
class OneBuffer(Last):
    box: dict = Box

    def predict(self, context, history):
        newest = history[0].output
        key = newest.shape, newest.dtype
        return self.box.setdefault(key, torch.empty_like(newest)).copy_(newest)


@broken("substitute", "rows_have_histories_of_their_own")
@frozen
class MixesRows(Last):
    def predict(self, context, history):
        newest = history[0].output
        return newest + torch.nan_to_num(newest.double()).mean(dim=0).to(newest.dtype)


@broken("substitute", "works_with_what_it_declares")
@frozen
class LooksAtTheInput(Last):
    def predict(self, context, history):
        assert context.input.shape[0] == history[0].output.shape[0]
        return history[0].output


@broken("substitute", "what_is_evaluated_is_handed_out")
@frozen
class ChangesTheLatent(Last):
    def predict(self, context, history):
        context.x.add_(1.0)
        return history[0].output


@broken("substitute", "stays_within_its_order")
@frozen
class HighOrder(Last):
    def predict(self, context, history):
        return Prediction(history[0].output, (5,) * len(history[0].filled))


@frozen
class Line(Extrapolation):
    name: ClassVar[str] = "line"
    order: ClassVar[int] = 1

    def coefficients(self, t, refreshes):
        if len(refreshes) == 1:
            return (1.0,)
        ahead = (refreshes[0] - t) / (refreshes[1] - refreshes[0])
        return (1.0 + ahead, -ahead)

    def predict(self, context: Context, history) -> Tensor | Prediction:
        output = history[0].output.clone()
        for row, filled in enumerate(history[0].filled):
            if filled:
                output[row] = self.row(context.t, [h for h in history if h.filled[row]], row).to(output.dtype)
        return output

    def row(self, t: float, known: list[Refresh], row: int) -> Tensor:
        weights = self.coefficients(t, [h.t[row] for h in known])
        return sum(w * h.output[row].double() for w, h in zip(weights, known, strict=False))


@broken("substitute", "weights_sum_to_one", {"what_does_not_change_is_reproduced"})
@frozen
class Damped(Line):
    def coefficients(self, t, refreshes):
        return tuple(0.9 * weight for weight in super().coefficients(t, refreshes))


@broken("substitute", "what_does_not_change_is_reproduced", {"predicts_what_the_weights_say"})
@frozen
class DampedUnsaid(Line):
    def row(self, t, known, row):
        return 0.9 * super().row(t, known, row)


@broken("substitute", "predicts_what_the_weights_say")
@frozen
class HoldsInstead(Line):
    def row(self, t, known, row):
        return known[0].output[row].double()


@broken("substitute", "many_weights_are_the_single_ones")
@frozen
class ManyZeros(Line):
    def many_coefficients(self, t, refreshes):
        return np.zeros(refreshes.shape)


# -- sites -------------------------------------------------------------------------------------------------------------


class Whole(ResolvedSite):
    """The output of the model, a tensor: a site without any comfort."""

    name = "whole"
    shares: Mapping[str, float] = {"": 1.0}

    def serve(self, served, invocation):
        evaluated = []

        def evaluate(rows, audit):
            output = self.evaluated(served, invocation, rows)
            evaluated.append(rows)
            return output

        output = served.serve(Arrival("", served.call.x, self.read(served)), evaluate)
        served.leave()
        return self.handed_out(output, served, reused=not evaluated, invocation=invocation)

    def read(self, served) -> dict[str, Tensor]:
        return {}

    def evaluated(self, served, invocation, rows):
        return invocation.run(rows)

    def handed_out(self, output, served, *, reused, invocation):
        return output


ONE_TENSOR = (block_subject(),)


@frozen
class At(Site):
    """A site of the given kind."""

    kind: type[ResolvedSite]
    name: ClassVar[str] = "at"

    def resolve(self, setup: Setup) -> ResolvedSite:
        return self.kind()


def broken_site(name: str, also=()):
    """Register a resolved site as broken."""

    def add(kind):
        BROKEN.append(Broken("site", name, lambda: site_checks(At(kind), subjects=ONE_TENSOR), also))
        return kind

    return add


@broken_site("never_reusing_is_the_bare_model")
class Rounded(Whole):
    def evaluated(self, served, invocation, rows):
        return invocation.run(rows) + 1e-6


@broken_site("reuse_runs_what_the_trace_says")
class RunsAnyway(Whole):
    shares: Mapping[str, float] = {}

    def serve(self, served, invocation):
        invocation.run(None)
        return super().serve(served, invocation)


@broken_site("nothing_is_left_on_the_model")
class LeavesAMark(Whole):
    def evaluated(self, served, invocation, rows):
        invocation.function.seen = True
        return invocation.run(rows)


@broken_site("runs_do_not_see_each_other", {"threads_do_not_see_each_other"})
class FirstOfAll(Whole):
    """Hands out the first output that it ever saw."""

    def __init__(self):
        self.first = {}

    def handed_out(self, output, served, *, reused, invocation):
        first = self.first.setdefault(served.call.branch, output.clone())
        return first.clone() if reused else output


@broken_site("shares_are_parts_of_a_call", {"reused_work_is_what_the_shares_say"})
class MoreThanAll(Whole):
    shares: Mapping[str, float] = {"": 1.5}


@broken_site("reused_work_is_what_the_shares_say")
class SaysHalf(Whole):
    shares: Mapping[str, float] = {"": 0.5}


@broken_site("rows_that_part_are_as_alone")
class OtherRows(Whole):
    def evaluated(self, served, invocation, rows):
        return invocation.run(None if rows is None else [0 for _ in rows])


@broken_site("a_reuse_beside_its_evaluation_is_that")
class Shifted(Whole):
    def handed_out(self, output, served, *, reused, invocation):
        return output + 1.0 if reused else output


@broken_site("a_reuse_puts_back_what_was_evaluated")
class HandsOutItsMemory(Whole):
    def handed_out(self, output, served, *, reused, invocation):
        if reused:
            return served.kept("")
        served.keep("", output.clone())
        return output


@broken_site("branches_do_not_see_each_other")
class OneMemory(Whole):
    def handed_out(self, output, served, *, reused, invocation):
        if not reused:
            served.run.kept[("all", "")] = output.clone()
        return served.run.kept[("all", "")].clone()


@broken_site("threads_do_not_see_each_other")
class OneCallAtATime(Whole):
    """Keeps what belongs to a call in itself."""

    def evaluated(self, served, invocation, rows):
        self.now = invocation.x
        output = invocation.run(rows)
        return output + float(self.now.sum() - invocation.x.sum())


@broken_site("supplies_the_signals_that_it_names")
class Promises(Whole):
    signals = frozenset({"modulated_input"})

    def read(self, served):
        return dict.fromkeys(served.engine.signals, served.call.x[:1])


class Backwards(ModulesSite):
    """Names its places in the order in which they do not run."""

    @property
    def places(self):
        return super().places[::-1]


class Twice(ModulesSite):
    """Names its last place twice."""

    @property
    def places(self):
        return (*super().places, super().places[-1])


@frozen
class EachBlock(Site):
    kind: Callable[[nn.Module, Mapping[str, nn.Module]], ResolvedSite]
    name: ClassVar[str] = "each-block"

    def resolve(self, setup: Setup) -> ResolvedSite:
        network = setup.network_for(self.name)
        return self.kind(network, dict(network.get_submodule("blocks").named_children()))


broken("site", "places_are_distinct_and_stay", ANY)(
    lambda: EachBlock(lambda network, blocks: Twice("twice", network, blocks))
)
broken("site", "places_come_one_by_one")(lambda: EachBlock(lambda network, blocks: Backwards("back", network, blocks)))


# -- adapters ----------------------------------------------------------------------------------------------------------


def broken_adapter(name: str, adapter: Adapter, subject: Subject, also=()) -> None:
    BROKEN.append(Broken("adapter", name, lambda: adapter_checks(adapter, subject), also))


def _subject(network: nn.Module) -> Subject:
    return evolve(block_subject(), model=network)


class Blind(BlockNetwork):
    """Its head does not look at what leaves the stack."""

    def forward(self, x, t):
        super().forward(x, t)
        return x * t.reshape(-1, 1, 1, 1)


class Steep(BlockNetwork):
    """Its head depends on t so much that nothing beside it matters."""

    def forward(self, x, t):
        return super().forward(x, t) * (1 + 1e3 * (t - 900.0).reshape(-1, 1, 1, 1))


class Crowded(BlockNetwork):
    """A row depends on the others."""

    def forward(self, x, t):
        return super().forward(x + x.mean(dim=0, keepdim=True), t)


def _idle() -> BlockNetwork:
    network = BlockNetwork()
    for name, parameter in network.blocks.named_parameters():
        if "linear" in name:
            nn.init.zeros_(parameter)
    return network


def _runs_the_block(block, arguments):
    return nn.Module.__call__(block, **arguments)


ONE, TWO = adapter_of_blocks(), adapter_of_blocks(2)
broken_adapter("fits_its_model", evolve(ONE, rows=("x", "t", "text")), block_subject())
broken_adapter("never_reusing_is_the_bare_model", evolve(ONE, streams="hidden"), block_subject(), ANY)
broken_adapter("the_stack_does_something", ONE, _subject(_idle()), {"a_reuse_can_be_told_from_an_evaluation"})
broken_adapter(
    "a_reuse_runs_no_block",
    evolve(ONE, stack=(Blocks("blocks.0"), Blocks("blocks.1", _runs_the_block), Blocks("blocks.2"))),
    block_subject(),
)
broken_adapter(
    "a_reuse_is_the_head_of_input_and_residual",
    evolve(TWO, streams="hidden_states"),
    block_subject(2),
    {"nothing_flows_past_the_cut"},
)
broken_adapter("a_reuse_can_be_told_from_an_evaluation", ONE, _subject(Blind()))
broken_adapter("nothing_flows_past_the_cut", ONE, _subject(Steep()))
broken_adapter("rows_that_part_are_as_alone", ONE, _subject(Crowded()))
broken_adapter(
    "supplies_its_signals", evolve(ONE, signals={"one": lambda block, given: torch.ones(2, 1)}), block_subject()
)


# -- schedulers --------------------------------------------------------------------------------------------------------


@broken("scheduler", "declares_soundly")
@frozen
class OtherFamily(FlowEuler):
    family = "rectified"


@broken("scheduler", "config_is_json")
@frozen
class Tuples(FlowEuler):
    config = {"shift": (1, 2)}  # noqa: RUF012


@broken("scheduler", "timesteps_fall", ANY)
@frozen
class Rising(FlowEuler):
    def timesteps(self, num_steps):
        return super().timesteps(num_steps)[::-1]


@broken("scheduler", "a_wrong_number_of_steps_is_refused")
@frozen
class Lenient(FlowEuler):
    def timesteps(self, num_steps):
        return super().timesteps(int(num_steps))


@broken("scheduler", "noise_levels_are_exact")
@frozen
class InSinglePrecision(FlowEuler):
    def sigma(self, t):
        return super().sigma(t).float()


@broken("scheduler", "a_run_takes_its_steps")
@frozen
class OneLess(FlowEuler):
    def begin(self, num_steps, **options):
        run = super().begin(num_steps, **options)
        return super().begin(max(1, num_steps - 1), **options) if run else run


class Stepping:
    """A run whose step is another function's."""

    def __init__(self, run, step):
        self.run, self.step = run, step

    def __getattr__(self, name):
        return getattr(self.run, name)

    def advance(self, output, x):
        return self.step(self.run, output, x)


def stepping(step):
    """Return a begin whose runs advance by a function of run, output and latent."""

    def begin(self, num_steps, *, generator=None, device=None):
        return Stepping(FlowEuler.begin(self, num_steps), lambda *a: step(self, generator, *a))

    return begin


@broken("scheduler", "a_run_can_be_repeated")
@frozen
class OneRunAtATime(FlowEuler):
    box: dict = Box

    def begin(self, num_steps, **options):
        self.box["last"] = 0.0

        def step(run, output, x):
            mixed = output + 0.1 * self.box["last"]
            self.box["last"] = output
            return run.advance(mixed, x)

        return Stepping(super().begin(num_steps), step)


def _noisy(self, generator, run, output, x):
    drawn = [torch.randn(row.shape, generator=g) for row, g in zip(x, generator or [None] * len(x), strict=True)]
    return run.advance(output + 0.1 * torch.stack(drawn), x)


@broken("scheduler", "draws_noise_only_if_it_says_so")
@frozen
class SecretlyNoisy(FlowEuler):
    begin = stepping(_noisy)


@broken("scheduler", "a_batch_is_its_samples")
@frozen
class Centred(FlowEuler):
    begin = stepping(lambda self, generator, run, output, x: run.advance(output - output.mean(dim=0), x))


@broken("scheduler", "is_linear_in_the_outputs")
@frozen
class Clipped(FlowEuler):
    begin = stepping(lambda self, generator, run, output, x: run.advance(output.clamp(-1, 1), x))


@broken("scheduler", "leaves_what_it_is_given")
@frozen
class Halved(FlowEuler):
    begin = stepping(lambda self, generator, run, output, x: run.advance(output.mul_(0.5), x))


# -- tolerance schedules, scores, signals ------------------------------------------------------------------------------


@frozen
class Flat(ToleranceSchedule):
    name: ClassVar[str] = "flat"

    def start(self, run, setup, score, max_reuse):
        return lambda step: 0.1


@broken("tolerance schedule", "declares_soundly")
@frozen
class NegativeStreak(Flat):
    max_reuse = -1


@broken("tolerance schedule", "reads_no_tensor", ANY)
@frozen
class LooksAtTheLatent(Flat):
    def start(self, run, setup, score, max_reuse):
        return lambda step: 0.1 * float(step.x.abs().mean())


@broken("tolerance schedule", "is_finite_and_not_negative")
@frozen
class Negative(Flat):
    def start(self, run, setup, score, max_reuse):
        return lambda step: step.t - 500.0


@broken("tolerance schedule", "is_the_same_at_the_same_step")
@frozen
class Tiring(Flat):
    def start(self, run, setup, score, max_reuse):
        asked = itertools.count()
        return lambda step: float(next(asked))


@broken("tolerance schedule", "runs_do_not_see_each_other")
@frozen
class Ageing(Flat):
    box: dict = Box

    def start(self, run, setup, score, max_reuse):
        age = self.box["age"] = self.box.get("age", 0) + 1
        return lambda step: float(age)


@broken("tolerance schedule", "works_with_what_it_declares")
@frozen
class ByPlace(Flat):
    def start(self, run, setup, score, max_reuse):
        return lambda step: 1.0 / (1 + step.index)


@frozen
class Distance(Score):
    name: ClassVar[str] = "distance"

    def at(self, refreshes, t, displacement):
        return displacement + abs(t - refreshes[0])


@broken("score", "declares_soundly")
@frozen
class NoGrowth(Distance):
    growth = 0.0


@broken("score", "is_finite_and_not_negative")
@frozen
class Signed(Distance):
    def at(self, refreshes, t, displacement):
        return t - refreshes[0]


@broken("score", "is_the_same_again")
@frozen
class Wearing(Distance):
    box: dict = Box

    def at(self, refreshes, t, displacement):
        self.box["asked"] = self.box.get("asked", 0) + 1
        return float(self.box["asked"])


@frozen
class HalfDeclared(Distance):
    needs = Needs(curves=("alpha_x",))
    rate: float = 0.0


@broken("score", "works_with_what_it_declares")
@frozen
class FromTheProfile(ScoreSettings):
    name: ClassVar[str] = "from-the-profile"

    def resolve(self, setup):
        return HalfDeclared(float(setup.profile.curves["alpha_t"].at(500.0)))


@frozen
class Scaled(Signal):
    name: ClassVar[str] = "scaled"

    @property
    def inside(self):
        return False

    def read(self, at: SignalInput) -> Tensor:
        return at.x * (1 + at.t)


@broken("signal", "declares_soundly")
@frozen
class Perhaps(Scaled):
    def available(self, setup):
        return None


@broken("signal", "has_one_row_a_sample")
@frozen
class Integers(Scaled):
    def read(self, at):
        return at.x.round().long()


@broken("signal", "arrives_detached")
@frozen
class Buffered(Scaled):
    box: dict = Box

    def read(self, at):
        kept = self.box.setdefault(at.x.shape, torch.empty_like(at.x, requires_grad=False))
        return kept.copy_(at.x.detach())


@broken("signal", "is_the_same_again", {"a_row_is_its_sample_s"})
@frozen
class Counting(Scaled):
    box: dict = Box

    def read(self, at):
        self.box["read"] = self.box.get("read", 0) + 1
        return at.x + self.box["read"]


@broken("signal", "changes_nothing")
@frozen
class ChangesTheStream(Scaled):
    inside = True

    def read(self, at):
        at.arguments["hidden_states"].add_(1.0)
        return at.x + 1.0


@broken("signal", "is_read_where_it_says")
@frozen
class Inside(Scaled):
    def read(self, at):
        return at.arguments["hidden_states"] + 0.0


@broken("signal", "needs_no_gradient")
@frozen
class Gradient(Scaled):
    def read(self, at):
        with torch.enable_grad():
            x = at.x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(x.square().sum(), x)
        return slope


@broken("signal", "a_row_is_its_sample_s")
@frozen
class CentredSignal(Scaled):
    def read(self, at):
        return at.x - at.x.mean(dim=0, keepdim=True)


SOUND: Mapping[str, Callable[[], list[Check]]] = {
    "policy": lambda: policy_checks(Sound()),
    "substitute": lambda: substitute_checks(Last()),
    "extrapolation": lambda: substitute_checks(Line()),
    "site": lambda: site_checks(At(Whole), subjects=ONE_TENSOR),
    "adapter": lambda: adapter_checks(ONE, block_subject()),
    "adapter of two streams": lambda: adapter_checks(TWO, block_subject(2, "object")),
    "scheduler": lambda: scheduler_checks(FlowEuler()),
    "tolerance schedule": lambda: tolerance_checks(Flat()),
    "score": lambda: score_checks(Distance()),
    "signal": lambda: signal_checks(Scaled()),
}
"""What each broken plugin would be if it were not broken: the faults below are the only ones."""
