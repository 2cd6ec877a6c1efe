"""What every policy promises, as checks: `check_policy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import hypothesis
import torch
from attrs import evolve, field, frozen
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.base.outputs import tensor_of
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.contracts.step import Step
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import policies
from cachepolicies.registry.registry import Registry
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.sites.resolve import resolved_site
from cachepolicies.substitutes.hold import Hold
from cachepolicies.substitutes.resolve import as_substitute
from cachepolicies.testing import strategies as made
from cachepolicies.testing.bench import (
    USUAL_SIGNALS,
    Bench,
    BenchRun,
    BenchSite,
    Latents,
    SignalOf,
    Surroundings,
    Watching,
    modulated,
    only_declared,
    row_by_row,
)
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.denoisers import HORIZON, SHAPE, LinearDenoiser, calibrated_profile
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.strategies import DTYPES, Batch, RunPlan
from cachepolicies.testing.subjects import block_subject
from cachepolicies.wrapper.denoiser import CachedDenoiser

PLACES = ("first", "second", "third")
"""Of the site on which policies that decide place by place are tried, where no other is given."""

_NEAR = 1e-4
"""A score this near to its tolerance may fall to either side by rounding."""


@frozen(eq=False)
class PolicyCase:
    """A policy with what it needs; see `check_policy`."""

    settings: PolicySettings
    profile: Profile | None
    scheduler: Scheduler | None
    substitute: Substitute
    signals: Mapping[str, SignalOf]
    denoiser: Callable[..., Any]
    timesteps: tuple[float, ...] | None
    start: float
    shape: tuple[int, ...]
    site: ResolvedSite | None = None
    registry: Registry[Any] = field(factory=policies)

    @property
    def places(self) -> tuple[str, ...]:
        """The places of a call, for a policy that decides place by place."""
        return PLACES if self.site is None else self.site.places

    def setup(self) -> Setup:
        """Return what the policy is resolved with."""
        setup = Setup(self.profile, scheduler=self.scheduler)
        setup = setup.with_parts(substitute=as_substitute(self.substitute.resolve(setup)))
        if self.site is not None:
            return setup.with_parts(site=self.site)
        names = sorted({*self.signals, *USUAL_SIGNALS})
        several = setup.with_parts(site=BenchSite(names, PLACES))
        by_place = self._resolved(several).grain == "place"
        return several if by_place else setup.with_parts(site=BenchSite(names))

    def policy(self) -> CachePolicy:
        """Return the policy, resolved, in memory of its own."""
        return self._resolved(self.setup())

    def _resolved(self, setup: Setup) -> CachePolicy:
        resolved: object = copied(self.settings).resolve(setup)
        expect(isinstance(resolved, CachePolicy), f"it resolves to {resolved!r}, which is no CachePolicy")
        assert isinstance(resolved, CachePolicy)
        return resolved

    def around(self, *, needs: Needs | None = None) -> Surroundings:
        """Return what the policy is tried in, with what it needs of the profile or with all of it."""
        profile = self.profile if needs is None else only_declared(self.profile, needs)
        signals = dict.fromkeys(USUAL_SIGNALS, modulated) | dict(self.signals)
        return Surroundings(row_by_row(self.denoiser), profile, signals, as_substitute(self.setup().substitute))

    def bench(self, policy: CachePolicy | None = None, **options: Any) -> Bench:
        """Return a bench for the policy; where it decides or looks place by place, with several places."""
        used = self.policy() if policy is None else policy
        return Bench(used, self.around(), **({"places": self.reached(used)} | options))

    def reached(self, policy: CachePolicy) -> tuple[str, ...]:
        """Return the places of a call: several where the policy decides or looks place by place."""
        several = policy.grain == "place" or (self.site is not None and (policy.observes_places or policy.verifies))
        return self.places if several else ("",)


def _runs(**options: Any) -> Callable[[PolicyCase], Any]:
    def strategy(case: PolicyCase) -> Any:
        usual = {"declared": True, "second_calls": False, "jumps": False}
        return made.runs(timesteps=case.timesteps, start=case.start, **(usual | options))

    return strategy


def _batches(**options: Any) -> Callable[[PolicyCase], Any]:
    return lambda case: made.batches(shape=case.shape, **options)


def _from(batch: Batch, salt: int = 0) -> Latents:
    return lambda number, branch: batch.latents(number) + _offset(branch) + salt


def _offset(branch: str) -> float:
    return 0.25 * (sum(map(ord, branch)) % 7)


def _seen(one: BenchRun, other: BenchRun, found: str) -> None:
    same(difference_between(one.summary(), other.summary(), "the trace"), found)
    same(difference_between(one.outputs(), other.outputs(), "the outputs"), found)


POLICY: Suite[PolicyCase] = Suite("policy", SETTINGS)


@POLICY.property()
def declares_soundly(case: PolicyCase) -> None:
    """It resolves to a policy of its name, whose needs, grain and `reuses` are of their kinds and stay as they are."""
    policy = case.policy()
    expect(policy.name == case.settings.name, f"resolved it is called {policy.name!r}")
    needs, reuses, grain = policy.needs, policy.reuses, policy.grain
    expect(isinstance(needs, Needs), f"needs is {needs!r}")
    expect(isinstance(reuses, bool), f"reuses is {reuses!r}")
    expect(grain in ("call", "place"), f"grain is {grain!r}")
    same(difference_between((needs, reuses, grain), (policy.needs, policy.reuses, policy.grain)), "asked again")


@POLICY.property(
    unless=lambda case: "it reuses" if case.policy().reuses else None,
    run=_runs(max_steps=4),
    batch=_batches(max_samples=2),
    denoiser=lambda _: made.denoisers(),
)
def where_it_never_reuses_it_is_the_bare_model(
    case: PolicyCase, run: RunPlan, batch: Batch, denoiser: made.Denoiser
) -> None:
    """If `reuses` is False, it wants no reuse, and the wrapped model is the bare one bit for bit, of its type."""
    model, policy = denoiser.build(), case.policy()
    # A function: a profile cannot know that it was calibrated for another class.
    cached = CachedDenoiser(lambda x, t: model(x, t), policy, profile=case.profile, site="output")
    with cached.run(timesteps=run.timesteps) as handle:
        for number, t in enumerate(run.calls):
            x = Batch(batch.samples, 1, batch.seed, batch.pace, denoiser.dtype).latents(number)
            level = torch.full((x.shape[0],), t)
            got, bare = handle(x, level), model(x, level)
            expect(type(got) is type(bare), f"it returns a {type(got).__name__}, not a {type(bare).__name__}")
            same(difference_between(tensor_of(got), tensor_of(bare)), f"at t={t:g} it is not the bare model")


def _judged(case: PolicyCase, run: RunPlan, batch: Batch, judge: Callable[[Decision, int], None]) -> None:
    """Ask the policy at every step, and look at what it says before the engine does."""

    def decide(policy: CachePolicy, step: Step, state: Any) -> Decision:
        decision = policy.decide(step, state)
        judge(decision, step.run.decisions)
        return _mended(decision, step.run.decisions)

    case.bench(Watching(case.policy(), decide), copies=batch.copies).sampled(run, _from(batch))


def _mended(decision: Any, count: int) -> Decision:
    """Return a decision that the engine takes: what else is wrong with one is for another property to say."""

    def entries(name: str, kind: type) -> tuple[Any, ...] | None:
        values = getattr(decision, name, None)
        fits = isinstance(values, tuple) and len(values) == count and all(isinstance(one, kind) for one in values)
        return values if fits else None

    reuse = entries("reuse", bool) or (False,) * count
    reason = entries("reason", Reason) or (EngineReason.NOTHING_TO_REUSE,) * count
    return Decision(reuse, reason, entries("score", Real), entries("tolerance", Real))


@POLICY.property(run=_runs(max_steps=4), batch=_batches(doubled=None))
def has_one_entry_for_each_decision(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """It returns a Decision with one entry for each deciding sample; `reuse` holds bools."""

    def judge(decision: Decision, count: int) -> None:
        expect(isinstance(decision, Decision), f"decide returned {decision!r}")
        for part in (decision.reuse, decision.reason, decision.score, decision.tolerance):
            fits = part is None or (isinstance(part, tuple) and len(part) == count)
            expect(fits, f"{part!r} for {count} decisions, in {decision!r}")
        expect(all(type(one) is bool for one in decision.reuse), f"reuse is {decision.reuse!r}")

    _judged(case, run, batch, judge)


@POLICY.property(run=_runs(max_steps=4), batch=_batches())
def gives_reasons_that_are_members(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """Every reason is a member of an enumeration that derives from Reason."""

    def judge(decision: Decision, count: int) -> None:
        expect(all(isinstance(one, Reason) for one in decision.reason), f"the reasons are {decision.reason!r}")

    _judged(case, run, batch, judge)


@POLICY.property(run=_runs(max_steps=4), batch=_batches())
def gives_scores_that_are_numbers(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """Scores and tolerances are numbers, and a tolerance is never nan."""

    def judge(decision: Decision, count: int) -> None:
        for part in (decision.score, decision.tolerance):
            expect(all(isinstance(one, Real) for one in part or ()), f"{part!r} is not made of numbers")
        expect(not any(math.isnan(one) for one in decision.tolerance or ()), f"tolerance is {decision.tolerance!r}")

    _judged(case, run, batch, judge)


@POLICY.property(run=_runs(max_steps=5), batch=_batches(doubled=None))
def decides_the_same_when_asked_twice(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """Asked twice at one step, with the same state, it decides the same."""

    def decide(policy: CachePolicy, step: Step, state: Any) -> Decision:
        first, second = policy.decide(step, state), policy.decide(step, state)
        same(difference_between(first, second, "the decision"), f"asked twice at t={step.t:g}")
        return second

    case.bench(Watching(case.policy(), decide), copies=batch.copies).sampled(run, _from(batch))


@POLICY.property(run=_runs(max_steps=5), batch=_batches())
def never_changes_a_state(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """`decide`, `observe` and `verify` leave the state that they are given as it was; a new state is a new object."""

    def decide(policy: CachePolicy, step: Step, state: Any) -> Decision:
        before = copied(state)
        decision = policy.decide(step, state)
        same(difference_between(before, state, "the state"), f"decide at t={step.t:g} changed it")
        return decision

    def observe(policy: CachePolicy, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        before = copied(state)
        after = policy.observe(step, decision, output, state)
        same(difference_between(before, state, "the state"), f"observe at t={step.t:g} changed it")
        return after

    def verify(policy: CachePolicy, step: Step, place: str, drafted: Tensor, computed: Tensor, state: Any) -> Any:
        before = copied(state)
        after = policy.verify(step, place, drafted, computed, state)
        same(difference_between(before, state, "the state"), f"verify at t={step.t:g} changed it")
        return after

    case.bench(Watching(case.policy(), decide, observe, on_verify=verify)).sampled(run, _from(batch))


@POLICY.property(run=_runs(max_steps=4), batch=_batches())
def never_changes_what_it_sees(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """It changes neither latent, input and signals of a step, nor the output that it observes."""

    def parts(step: Step) -> tuple[Any, ...]:
        return step.x, step.input, dict(step.signals)

    def decide(policy: CachePolicy, step: Step, state: Any) -> Decision:
        before = copied(parts(step))
        decision = policy.decide(step, state)
        same(difference_between(before, parts(step), "(x, input, signals)"), f"decide at t={step.t:g} changed it")
        return decision

    def observe(policy: CachePolicy, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        before = copied((*parts(step), output))
        after = policy.observe(step, decision, output, state)
        now = (*parts(step), output)
        same(difference_between(before, now, "(x, input, signals, output)"), f"observe at t={step.t:g} changed it")
        return after

    def verify(policy: CachePolicy, step: Step, place: str, drafted: Tensor, computed: Tensor, state: Any) -> Any:
        before = copied((*parts(step), drafted, computed))
        after = policy.verify(step, place, drafted, computed, state)
        now = (*parts(step), drafted, computed)
        what = "(x, input, signals, drafted, computed)"
        same(difference_between(before, now, what), f"verify at t={step.t:g} changed it")
        return after

    case.bench(Watching(case.policy(), decide, observe, on_verify=verify)).sampled(run, _from(batch))


@POLICY.property(run=_runs(max_steps=6), batch=_batches())
def keeps_no_tensor_of_the_caller(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """What it remembers is its own: changing latent and output in place afterwards changes no decision."""
    seen: list[Tensor] = []

    def scribbled() -> None:
        for tensor in seen:
            if tensor.is_contiguous():
                tensor.add_(17.0)
        seen.clear()

    def decide(policy: CachePolicy, step: Step, state: Any) -> Decision:
        scribbled()  # on what the call before has seen at all of its places
        return policy.decide(step, state)

    def observed(policy: CachePolicy, step: Step, decision: Decision, output: Tensor, state: Any) -> Any:
        after = policy.observe(step, decision, output, state)
        seen.extend((step.x, output, *step.signals.values()))
        if policy.grain == "place":
            scribbled()
        return after

    def at_place(policy: CachePolicy, step: Step, place: str, decision: Decision, output: Tensor, state: Any) -> Any:
        after = policy.observe_place(step, place, decision, output, state)
        seen.extend((output, *step.signals.values()))
        return after

    def verify(policy: CachePolicy, step: Step, place: str, drafted: Tensor, computed: Tensor, state: Any) -> Any:
        after = policy.verify(step, place, drafted, computed, state)
        seen.extend((drafted, computed, *step.signals.values()))
        return after

    plain = case.bench().sampled(run, _from(batch))
    watching = Watching(case.policy(), decide, observed, at_place, verify)
    other = case.bench(watching).sampled(run, _from(batch))
    same(difference_between(plain.summary(), other.summary(), "the trace"), "it follows the caller's tensors")


@POLICY.property(
    run=_runs(max_steps=6),
    batch=_batches(max_samples=4, doubled=None),
)
def a_batch_decides_as_its_samples(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """Every sample of a batch decides as it does alone; a batch that is doubled for guidance as one that is not."""
    together = case.bench(copies=batch.copies).sampled(run, _from(batch))
    for sample in range(batch.samples):

        def alone(number: int, branch: str, sample: int = sample) -> Tensor:
            return batch.latents(number, [sample]) + _offset(branch)

        single = case.bench(copies=batch.copies).sampled(run, alone)
        for one, other in zip(together.records, single.records, strict=True):
            if _tie(one.score, one.tolerance, sample):
                break  # from here on rounding may have decided
            reasons = f"{other.reason[0].text!r} alone, {one.reason[sample].text!r} in the batch"
            expect(one.evaluated[sample] == other.evaluated[0], f"sample {sample} at t={one.t:g}: {reasons}")


@POLICY.property(
    run=_runs(max_steps=6, min_steps=2),
    batch=_batches(min_samples=2),
    bad=lambda case: st.sampled_from((math.nan, math.inf)),
)
def a_bad_row_does_not_touch_the_others(case: PolicyCase, run: RunPlan, batch: Batch, bad: float) -> None:
    """A latent with a nan or inf in it changes no decision of the other samples."""

    def spoilt(number: int, branch: str) -> Tensor:
        x = _from(batch)(number, branch)
        if number:
            x[0].fill_(bad)
        return x

    clean, other = case.bench().sampled(run, _from(batch)), case.bench().sampled(run, spoilt)
    for one, two in zip(clean.records, other.records, strict=True):
        if any(_tie(one.score, one.tolerance, sample) for sample in range(1, batch.samples)):
            break
        expect(
            one.evaluated[1:] == two.evaluated[1:],
            f"at t={one.t:g} the others evaluate {one.evaluated[1:]} without the bad row, {two.evaluated[1:]} with it",
        )


@POLICY.property(run=_runs(max_steps=5), other=_runs(max_steps=4), batch=_batches(), stop=lambda _: st.integers(1, 4))
def runs_do_not_see_each_other(case: PolicyCase, run: RunPlan, other: RunPlan, batch: Batch, stop: int) -> None:
    """A run that broke off, or came to its end, leaves nothing behind: the next is as with a policy that is new."""
    used, new = case.bench(), case.bench()
    broken = used.request(other).calls(_from(batch, 1))
    for _ in range(stop):
        next(broken, None)
    _seen(used.sampled(run, _from(batch)), new.sampled(run, _from(batch)), "after a run that broke off")
    _seen(used.sampled(run, _from(batch)), new.sampled(run, _from(batch)), "after a run that came to its end")


@POLICY.property(run=_runs(max_steps=5), batch=_batches(), turns=lambda _: st.lists(st.booleans(), max_size=10))
def requests_in_turn_do_not_see_each_other(case: PolicyCase, run: RunPlan, batch: Batch, turns: list[bool]) -> None:
    """Two requests in flight, call by call in turn, are each as they are alone."""
    bench = case.bench()
    runs = [bench.request(run), bench.request(run)]
    calls = [sampled.calls(_from(batch, salt)) for salt, sampled in enumerate(runs)]
    for first in [*turns, *[True, False] * len(run.calls)]:
        next(calls[0 if first else 1], None)
    for salt, sampled in enumerate(runs):
        _seen(sampled, case.bench().sampled(run, _from(batch, salt)), f"request {salt} of two")


@POLICY.property(
    examples=15,
    run=_runs(max_steps=4),
    batch=_batches(),
    branches=lambda case: made.branches(steps=len(case.timesteps or ()) or 4),
)
def branches_do_not_see_each_other(
    case: PolicyCase, run: RunPlan, batch: Batch, branches: tuple[tuple[str, ...], ...]
) -> None:
    """Branches that decide for themselves are each as if the others were never called."""
    together = case.bench().sampled(run, _from(batch), branches)
    for branch in sorted({name for names in branches for name in names}):
        own = [tuple(name for name in names if name == branch) for names in branches]
        alone = case.bench().sampled(run, _from(batch), own)
        seen = [entry for entry in together.summary() if entry[1] == branch]
        same(difference_between(seen, alone.summary(), "the trace"), f"branch {branch!r} beside others")


@POLICY.property(
    unless=lambda case: None if case.policy().grain == "place" else "it decides once a call",
    run=_runs(max_steps=5),
    batch=_batches(),
)
def places_do_not_see_each_other(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """Where it decides place by place, every place is as if it were the only one."""
    together = case.bench().sampled(run, _from(batch))
    for place in case.places:
        single = case.bench(reached=(place,)).sampled(run, _from(batch))
        seen = [entry for entry in together.summary() if entry[2] == place]
        same(difference_between(seen, single.summary(), "the trace"), f"place {place!r} beside others")


@POLICY.property(run=_runs(declared=None), batch=_batches(max_samples=2))
def works_with_what_it_declares(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """It needs nothing that it does not declare: no signal, input, curve, table, or length of the run."""
    policy = case.policy()
    if policy.needs.run_length and not run.declared:
        run = RunPlan(run.timesteps)
    around = case.around(needs=policy.needs)
    Bench(policy, around, places=case.reached(policy), exact=True).sampled(run, _from(batch))


@POLICY.property(examples=12, run=_runs(second_calls=None, jumps=None, declared=None), batch=_batches(max_samples=2))
def takes_any_run(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """It decides in every kind of run: of one step, with second calls as Heun's, with a jump back, undeclared."""
    policy = case.policy()
    if policy.needs.run_length and not run.declared:
        run = RunPlan(run.timesteps, True, run.second_calls, run.back)
    sampled = case.bench(policy).sampled(run, _from(batch))
    calls = len(sampled.outcomes) // len(sampled.bench.places)
    expect(calls == len(run.calls), f"{calls} of {len(run.calls)} calls were served")


@POLICY.property(examples=2, run=_runs(max_steps=4), batch=_batches(max_samples=2))
def takes_any_dtype(case: PolicyCase, run: RunPlan, batch: Batch) -> None:
    """It decides on latents of any floating-point dtype."""
    for dtype in DTYPES:
        try:
            case.bench().sampled(run, _from(evolve(batch, dtype=dtype)))
        except hypothesis.errors.UnsatisfiedAssumption:  # it refuses the run, not the dtype
            raise
        except Exception as error:
            expect(False, f"on {dtype} it raised {type(error).__name__}: {error}")


def _tie(score: Any, tolerance: Any, sample: int) -> bool:
    if score is None or tolerance is None:
        return False
    return bool(abs(score[sample] - tolerance[sample]) <= _NEAR * max(1.0, abs(tolerance[sample])))


def _with_places(site: Site | str | Mapping[str, str], signals: Sequence[str]) -> ResolvedSite:
    """Return a site whose places are those of the bench: on a small network of blocks, or as they are given."""
    if isinstance(site, Mapping):
        return BenchSite(signals, tuple(site), site)
    subject = block_subject()
    setup = Setup(model=subject.model, network=subject.network, adapter=subject.adapter, substitute=Hold())
    return resolved_site(site, setup)


def policy_checks(
    policy: PolicySettings,
    *,
    profile: Profile | None = None,
    scheduler: Scheduler | str | None = None,
    substitute: Substitute | str = "hold",
    signals: Iterable[str] | Mapping[str, SignalOf] = (),
    denoiser: Callable[..., Any] | None = None,
    shape: tuple[int, ...] = SHAPE,
    site: Site | str | Mapping[str, str] | None = None,
    timesteps: Iterable[float] | None = None,
    start: float = HORIZON,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a policy, for `parametrize_with_checks`; takes what `check_policy` takes."""
    named = dict.fromkeys(signals, modulated) if not isinstance(signals, Mapping) else dict(signals)
    case = PolicyCase(
        policy,
        calibrated_profile() if profile is None else profile,
        None if scheduler is None else as_scheduler(scheduler),
        as_substitute(substitute),
        named,
        LinearDenoiser() if denoiser is None else denoiser,
        None if timesteps is None else tuple(timesteps),
        start,
        shape,
        None if site is None else _with_places(site, sorted({*named, *USUAL_SIGNALS})),
    )
    return POLICY.checks(case, policy, label or str(getattr(policy, "name", policy)), expected_failures)


def check_policy(policy: PolicySettings, **options: Any) -> None:
    """Check that a policy keeps what `cachepolicies.CachePolicy` promises.

    ```python
    check_policy(MyPolicy(every=3))
    ```

    Everything is tried on a bench, without a model: the engine with made latents, signals and places.

    Args:
        policy: the policy, or settings that resolve to one, as a user would write it.
        **options: what it needs, where it needs more. ``profile=``: else one that was calibrated on a mixture of
            Gaussians, with every curve and table that calibration knows of. ``scheduler=``: in use, for a substitute
            that extrapolates in its time. ``substitute=``: what stands in, else hold. ``signals=``: names that it looks
            at, or a mapping of names to functions of the latent and t; those that it declares are there anyway.
            ``site=``: whose places it decides on, if not any; it is resolved on a small network of blocks. Or a mapping
            of places to their kinds, see `cachepolicies.ResolvedSite.kinds`.
            ``denoiser=``: ``f(x, t)`` that returns a tensor, else a linear one; ``shape=`` of one sample.
            ``timesteps=``: of the runs that it takes, if not any; ``start=``: where runs begin, else 1000.
            ``label=``: short name for ids. ``expected_failures=``: name of a property to the reason why it does not
            hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(policy_checks(policy, **options))
