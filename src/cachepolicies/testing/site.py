"""What every site promises, as checks: `check_site`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.base.errors import RunError
from cachepolicies.contracts.policy import CachePolicy
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.contracts.step import Step
from cachepolicies.policies.never import Never
from cachepolicies.registry.load import sites
from cachepolicies.registry.registry import Registry
from cachepolicies.sites.flops import CountedFlops
from cachepolicies.sites.resolve import as_site, resolved_site
from cachepolicies.substitutes.hold import Hold
from cachepolicies.testing.bench import Pattern
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import difference_between
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.subjects import (
    BLOCK_SUBJECTS,
    Subject,
    calls_of,
    leaves_of,
    left_on,
    tensors_in_order,
)
from cachepolicies.wrapper.denoiser import CachedDenoiser

STEPS = 4
"""Of the runs on which sites are tried."""


class _BrokenOffError(Exception):
    """Raised in the middle of a model's forward."""


@frozen(eq=False)
class SiteCase:
    """A site with what it is tried on; see `check_site`."""

    settings: Site
    subjects: Sequence[Subject]
    registry: Registry[Any] = field(factory=sites)

    def setup(self, subject: Subject | None = None) -> Setup:
        """Return what the site is resolved with."""
        on = self.subjects[0] if subject is None else subject
        return Setup(model=on.model, network=on.network, adapter=on.adapter, substitute=Hold())

    def resolved(self, subject: Subject) -> ResolvedSite:
        """Return the site on a model."""
        return resolved_site(self.settings, self.setup(subject))

    def cached(self, subject: Subject, policy: CachePolicy, **options: Any) -> CachedDenoiser:
        """Return the model, wrapped and cut at the site."""
        return CachedDenoiser(subject.model, policy, site=self.settings, adapter=subject.adapter, **options)


def _subjects(case: SiteCase) -> Any:
    return st.sampled_from(list(case.subjects))


def _patterns(case: SiteCase) -> Any:
    places = sorted({place for subject in case.subjects for place in case.resolved(subject).places})
    return st.frozensets(st.tuples(st.integers(1, STEPS - 1), st.sampled_from(places)), max_size=STEPS * len(places))


_seeds = st.integers(0, 100)


@torch.no_grad()
def _run(denoiser: CachedDenoiser, subject: Subject, calls: Sequence[Mapping[str, Any]], **more: Any) -> list[Any]:
    with denoiser.run(timesteps=[subject.level(inputs) for inputs in calls]) as run:
        return [run(**inputs, **more) for inputs in calls]


def _same_outputs(one: Any, other: Any, found: str) -> None:
    expect(type(one) is type(other), f"{found}: a {type(one).__name__} in the place of a {type(other).__name__}")
    same(difference_between(tensors_in_order(one), tensors_in_order(other), "the output"), found)


def _reused(places: Iterable[str], step: int = 1) -> Pattern:
    return Pattern({(step, place) for place in places}, "place")


def _no_network(case: SiteCase) -> str | None:
    return None if all(subject.network is not None for subject in case.subjects) else "there are no modules to look at"


def _as_one(case: SiteCase) -> str | None:
    parts = any(case.resolved(subject).parts_rows for subject in case.subjects)
    return None if parts else "the samples of a batch decide as one"


def _no_signals(case: SiteCase) -> str | None:
    supplies = any(case.resolved(subject).signals for subject in case.subjects)
    return None if supplies else "it supplies no signals"


SITE: Suite[SiteCase] = Suite("site", SETTINGS)


@SITE.property(examples=2, subject=_subjects)
def places_are_distinct_and_stay(case: SiteCase, subject: Subject) -> None:
    """Its places are texts, each there once, in an order that stays: asked again, and resolved again."""
    site = case.resolved(subject)
    places: object = site.places
    expect(isinstance(places, tuple) and places, f"places is {places!r}")
    expect(all(isinstance(place, str) for place in site.places), f"places is {places!r}")
    twice = [place for place, times in Counter(site.places).items() if times > 1]
    expect(not twice, f"{twice} are there more than once")
    expect(site.places == places, f"asked again: {site.places!r}, not {places!r}")
    expect(case.resolved(subject).places == places, f"resolved again: {case.resolved(subject).places!r}")


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds, rows=lambda _: st.integers(1, 3))
def never_reusing_is_the_bare_model(case: SiteCase, subject: Subject, seed: int, rows: int) -> None:
    """With a policy that never reuses, the outputs are those of the bare model, bit for bit and of its type."""
    calls = subject.along(rows, seed, STEPS)
    bare = [subject.bare(inputs) for inputs in calls]
    for policy in (Never(), Pattern((), "place")):
        outputs = _run(case.cached(subject, policy), subject, calls)
        for got, want in zip(outputs, bare, strict=True):
            _same_outputs(got, want, f"with the policy {policy.name!r} it is not the bare model")


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds)
def places_come_one_by_one(case: SiteCase, subject: Subject, seed: int) -> None:
    """An evaluated call has one entry in the trace for every place that it reaches, in the order of `places`."""
    cached = case.cached(subject, Pattern((), "place"))
    _run(cached, subject, subject.along(2, seed, 3))
    known = case.resolved(subject).places
    reached = []
    for number in range(3):
        places = [record.place for record in cached.trace.records if record.call == number]
        expect(places, f"call {number} has no entry")
        expect(places == [place for place in known if place in places], f"{places} in call {number}, of {known}")
        reached.append(places)
    expect(reached[0] == reached[1] == reached[2], f"the calls reached {reached}")


@SITE.property(unless=_no_network, examples=4, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def reuse_runs_what_the_trace_says(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """What the trace calls reused did not run, and everything else did, counted at the modules themselves."""
    network = subject.network
    assert network is not None
    calls = subject.along(1, seed, STEPS)
    leaves = leaves_of(network)

    def counted(policy: Pattern) -> tuple[list[Counter[str]], CachedDenoiser]:
        cached, found = case.cached(subject, policy), []
        with torch.no_grad(), cached.run(timesteps=[subject.level(inputs) for inputs in calls]) as run:
            for inputs in calls:
                with calls_of(leaves) as ran:
                    run(**inputs)
                found.append(ran)
        return found, cached

    with calls_of(leaves) as bare:
        subject.bare(calls[1])
    full = counted(Pattern((), "place"))[0][1]
    expect(full == bare, f"an evaluated call ran {dict(full)}, the bare model {dict(bare)}")
    skipped = {place: full - counted(_reused([place]))[0][1] for place in case.resolved(subject).places}
    for place, less in skipped.items():
        expect(less, f"reusing place {place!r} skipped nothing")
    ran, cached = counted(Pattern(pattern, "place"))
    for number, seen in enumerate(ran):
        reused: Counter[str] = Counter()
        for record in cached.trace.records:
            if record.call == number and not any(record.evaluated):
                reused |= skipped[record.place]
        expected = full - reused
        expect(seen == expected, f"in call {number} {dict(seen)} ran; by the trace it is {dict(expected)}")


@SITE.property(unless=_no_network, examples=4, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def nothing_is_left_on_the_model(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """Between calls, and after one that failed, no module has another class, attribute or hook than before."""
    own = subject.alone()
    network = own.network
    assert network is not None
    before = left_on(network)
    calls = own.along(1, seed, STEPS)
    cached = case.cached(own, Pattern(pattern, "place"))
    same(difference_between(before, left_on(network), "the model"), "after set-up")
    _run(cached, own, calls)
    same(difference_between(before, left_on(network), "the model"), "after a run")
    _break_off(cached, own, calls)
    same(difference_between(before, left_on(network), "the model"), "after a call that failed")


def _break_off(cached: CachedDenoiser, subject: Subject, calls: Sequence[Mapping[str, Any]]) -> None:
    """Begin a run, and let its second call fail in the middle of the model's forward."""
    network = subject.network
    if network is None:
        return
    with torch.no_grad(), cached.run(timesteps=[subject.level(inputs) for inputs in calls]) as run:
        run(**calls[0])
        with calls_of(leaves_of(network)) as ran:
            subject.bare(calls[1])
        last = leaves_of(network)[list(ran)[-1]]

        def fail(*_: Any) -> None:
            raise _BrokenOffError

        handle = last.register_forward_pre_hook(fail)
        try:
            run(**calls[1])
        except _BrokenOffError:
            pass
        finally:
            handle.remove()


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def runs_do_not_see_each_other(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """A run is as with a wrapper that is new, after one that came to its end and after one that failed."""
    policy = Pattern(pattern, "place")
    calls, others = subject.along(2, seed, STEPS), subject.along(2, seed + 1, STEPS)
    used = case.cached(subject, policy)
    _run(used, subject, others)
    fresh = _run(case.cached(subject, policy), subject, calls)
    for one, other in zip(_run(used, subject, calls), fresh, strict=True):
        _same_outputs(one, other, "after a run that came to its end")
    _break_off(used, subject, others)
    for one, other in zip(_run(used, subject, calls), fresh, strict=True):
        _same_outputs(one, other, "after a run that failed")


@SITE.property(examples=3, subject=_subjects)
def shares_are_parts_of_a_call(case: SiteCase, subject: Subject) -> None:
    """Once they are measured, every share belongs to a place and lies in [0, 1], and all of them sum to at most 1."""
    site = case.resolved(subject)
    cached = case.cached(subject, Pattern((), "place"))
    _run(cached, subject, subject.along(1, 0, 2))
    shares = cached._site.shares
    expect(set(shares) <= set(site.places), f"shares of {sorted(shares)}, places {site.places}")
    expect(all(0 <= share <= 1 for share in shares.values()), f"the shares are {dict(shares)}")
    expect(sum(shares.values()) <= 1 + 1e-9, f"the shares {dict(shares)} sum to {sum(shares.values())}")


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def reused_work_is_what_the_shares_say(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """A call does the work of an uncached one, less the shares of the places that it reuses; counted in FLOPs."""
    calls = subject.along(1, seed, STEPS)
    with CountedFlops() as whole:
        subject.bare(calls[0])
    if not whole.total:
        return  # nothing that is counted
    cached = case.cached(subject, Pattern(pattern, "place"))
    _run(cached, subject, calls[:2])  # it measures on its first call
    if not cached._site.shares:
        return  # it does not know them
    done = []
    with torch.no_grad(), cached.run(timesteps=[subject.level(inputs) for inputs in calls]) as run:
        for inputs in calls:
            with CountedFlops() as counter:
                run(**inputs)
            done.append(counter.total / whole.total)
    for number, part in enumerate(done):
        saved = sum(record.saved or 0.0 for record in cached.trace.records if record.call == number)
        expect(
            abs(1 - saved - part) <= 1e-6, f"call {number} did {part:.4f} of the work; by the shares {1 - saved:.4f}"
        )


@SITE.property(
    unless=_as_one,
    examples=5,
    subject=_subjects,
    seed=lambda _: _seeds,
    reuse=lambda _: st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def rows_that_part_are_as_alone(case: SiteCase, subject: Subject, seed: int, reuse: tuple[bool, bool, bool]) -> None:
    """Where rows may part, every sample comes out as it does alone, whatever the others do."""
    site = case.resolved(subject)
    if not site.parts_rows:
        return
    expect(len(site.places) == 1, f"rows cannot part with the places {site.places}")
    place = site.places[0]
    calls = subject.along(3, seed, 3)
    chosen = {(1, place, sample) for sample, again in enumerate(reuse) if again}
    together = _run(case.cached(subject, Pattern(chosen, "place")), subject, calls)
    for row, again in enumerate(reuse):
        own = [subject.taken(inputs, [row]) for inputs in calls]
        alone = _run(case.cached(subject, Pattern({(1, place)} if again else (), "place")), subject, own)
        for step, (whole, single) in enumerate(zip(together, alone, strict=True)):
            _row_is(whole, single, row, 3, f"row {row} at step {step}, of rows that reuse {reuse}")


def _row_is(whole: Any, single: Any, row: int, rows: int, found: str) -> None:
    all_of, one = tensors_in_order(whole), tensors_in_order(single)
    if len(all_of) == rows * len(one):  # a list with one tensor a sample
        pairs = [(all_of[row], one[0])]
    else:
        pairs = [(a[row : row + 1], b) for a, b in zip(all_of, one, strict=True)]
    for a, b in pairs:
        _near(a, b, 2e-5, found)


def _near(one: Tensor, other: Tensor, within: float, found: str) -> None:
    expect(one.shape == other.shape, f"{found}: {tuple(one.shape)} in the place of {tuple(other.shape)}")
    far = float((one - other).abs().max())
    expect(far <= within * max(1.0, float(other.abs().max())), f"{found}: {far:g} apart")


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds)
def a_reuse_beside_its_evaluation_is_that(case: SiteCase, subject: Subject, seed: int) -> None:
    """Reused right next to where it was evaluated, the output is the evaluation: nothing flows past the cut."""
    site = case.resolved(subject)
    now = subject.inputs(2, seed, subject.t_start)
    close = subject.moved(now, by=1e-5, far=0.0)
    for place in site.places:
        cached = case.cached(subject, _reused([place]))
        first, second = _run(cached, subject, [now, close])
        reused = [record.place for record in cached.trace.records if record.call == 1 and not any(record.evaluated)]
        expect(reused == [place], f"{reused} were reused, not {[place]}")
        for one, other in zip(tensors_in_order(second), tensors_in_order(first), strict=True):
            _near(one, other, 2e-3, f"place {place!r} reused next to its evaluation")


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds)
def a_reuse_puts_back_what_was_evaluated(case: SiteCase, subject: Subject, seed: int) -> None:
    """A reuse is of the model's own type and shape, and changing an output in place changes no later one."""
    calls = subject.along(2, seed, 3)
    places = case.resolved(subject).places
    policy = Pattern({(step, place) for step in (1, 2) for place in places}, "place")
    bare, plain = subject.bare(calls[1]), _run(case.cached(subject, policy), subject, calls)
    shapes = [[tensor.shape for tensor in tensors_in_order(output)] for output in (plain[1], bare)]
    expect(type(plain[1]) is type(bare), f"a reuse is a {type(plain[1]).__name__}, not a {type(bare).__name__}")
    expect(shapes[0] == shapes[1], f"a reuse has the shapes {shapes[0]}, the model {shapes[1]}")
    cached = case.cached(subject, policy)
    with torch.no_grad(), cached.run(timesteps=[subject.level(inputs) for inputs in calls]) as run:
        for number, inputs in enumerate(calls):
            output = run(**inputs)
            _same_outputs(output, plain[number], "after the outputs before were changed in place")
            for tensor in tensors_in_order(output):
                tensor.add_(1.0)


@SITE.property(examples=4, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def branches_do_not_see_each_other(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """Branches that are called in turn are each as if the other were not called."""
    policy = Pattern(pattern, "place")
    inputs = {"cond": subject.along(2, seed, STEPS), "uncond": subject.along(2, seed + 1, STEPS)}
    both = case.cached(subject, policy, branches="independent")
    outputs: dict[str, list[Any]] = {name: [] for name in inputs}
    with torch.no_grad(), both.run(timesteps=[subject.level(call) for call in inputs["cond"]]) as run:
        for step in range(STEPS):
            for name, calls in inputs.items():
                outputs[name].append(run(**calls[step], branch=name))
    for name, calls in inputs.items():
        alone = _run(case.cached(subject, policy), subject, calls, branch=name)
        for one, other in zip(outputs[name], alone, strict=True):
            _same_outputs(one, other, f"branch {name!r} beside another")


@SITE.property(examples=3, subject=_subjects, seed=lambda _: _seeds, pattern=_patterns)
def threads_do_not_see_each_other(
    case: SiteCase, subject: Subject, seed: int, pattern: frozenset[tuple[int, str]]
) -> None:
    """Runs in two threads, and bare calls in a third, are each as alone; or they are refused with a RunError."""
    policy = Pattern(pattern, "place")
    cached = case.cached(subject, policy)
    inputs = [subject.along(1, seed + number, STEPS) for number in range(2)]
    alone: list[list[Any]] = [_run(case.cached(subject, policy), subject, calls) for calls in inputs]
    alone.append([subject.bare(call) for call in inputs[0]])
    together = _Together(3)
    jobs: list[Callable[[Mapping[str, Any]], Any]] = [subject.bare]
    found: list[Any] = [None] * 3
    network = subject.network
    handles = [] if network is None else [together.meet_in(module) for module in leaves_of(network).values()]

    def work(number: int) -> None:
        calls = inputs[number % 2]
        try:
            if number < len(inputs):
                found[number] = _run(cached, subject, calls)
            else:
                found[number] = [jobs[0](call) for call in calls]
        except Exception as error:  # a thread's exception is looked at where the threads are joined
            found[number] = error
        finally:
            together.leave()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    for number, outputs in enumerate(found):
        what = "a bare caller" if number == len(inputs) else f"run {number}"
        if isinstance(outputs, Exception):
            refused = isinstance(outputs, RunError) and number < len(inputs)
            expect(refused, f"{what} beside others got {type(outputs).__name__}: {outputs}")
            continue
        for one, other in zip(outputs, alone[number], strict=True):
            _same_outputs(one, other, f"{what} beside others")


class _Together:
    """Lets threads wait for each other for a moment inside the model, so that their calls really overlap."""

    def __init__(self, count: int) -> None:
        self._turn = threading.Condition()
        self._left = count
        self._waiting = 0

    def meet_in(self, module: torch.nn.Module) -> Any:
        """Have everybody who calls a module wait, for a moment, until the others are inside the model too."""
        return module.register_forward_pre_hook(lambda *_: self._meet())

    def leave(self) -> None:
        """Wait for one less."""
        with self._turn:
            self._left -= 1
            self._turn.notify_all()

    def _meet(self) -> None:
        with self._turn:
            self._waiting += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._waiting >= self._left, timeout=0.002)
            self._waiting -= 1


@SITE.property(unless=_no_signals, examples=3, subject=_subjects, seed=lambda _: _seeds)
def supplies_the_signals_that_it_names(case: SiteCase, subject: Subject, seed: int) -> None:
    """A policy gets every signal of the site's list, with one row a sample, detached."""
    names = sorted(case.resolved(subject).signals)
    seen: list[dict[str, Tensor]] = []

    def look(step: Step) -> None:
        seen.append(dict(step.signals))

    calls = subject.along(2, seed, 2)
    _run(case.cached(subject, Pattern((), "call", tuple(names), see=look)), subject, calls)
    for signals in seen:
        expect(sorted(signals) == names, f"the policy got {sorted(signals)}, and declares {names}")
        for name, value in signals.items():
            expect(value.shape[0] == 2, f"signal {name!r} has shape {tuple(value.shape)} for 2 samples")
            expect(not value.requires_grad, f"signal {name!r} is not detached")


def site_checks(
    site: Site | str,
    *,
    subjects: Subject | Iterable[Subject] = BLOCK_SUBJECTS,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a site, for `parametrize_with_checks`; takes what `check_site` takes."""
    made_site = as_site(site)
    models = (subjects,) if isinstance(subjects, Subject) else tuple(subjects)
    return SITE.checks(SiteCase(made_site, models), made_site, label or str(made_site.name), expected_failures)


def check_site(site: Site | str, **options: Any) -> None:
    """Check that a site keeps what `cachepolicies.Site` and its resolved form promise.

    ```python
    check_site(MySite())
    check_site("blocks", subjects=Subject("mine", model, inputs))
    ```

    Args:
        site: as a user would write it.
        **options: ``subjects=``: one or several `Subject`, models with a way to call them; else two small networks of
            three blocks, of one and of two streams. ``label=``: short name for ids. ``expected_failures=``: name of a
            property to the reason why it does not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(site_checks(site, **options))
