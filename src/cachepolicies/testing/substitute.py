"""What every substitute promises, as checks: `check_substitute`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Context, Extrapolation, Prediction, Refresh, Substitute
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import substitutes
from cachepolicies.registry.registry import Registry
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.testing import strategies as made
from cachepolicies.testing.bench import Bench, Pattern, Surroundings, row_by_row
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.denoisers import HORIZON, LinearDenoiser, calibrated_profile
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.strategies import DTYPES, Batch, History, RunPlan

OTHER, OWN = "other", "own"
"""Branches of the runs of a substitute that looks at others, in the order in which they are called."""


@frozen(eq=False)
class SubstituteCase:
    """A substitute with what it needs; see `check_substitute`."""

    settings: Substitute
    profile: Profile | None
    scheduler: Scheduler | None
    start: float
    registry: Registry[Any] = field(factory=substitutes)

    def setup(self) -> Setup:
        """Return what the substitute is resolved with."""
        return Setup(self.profile, scheduler=self.scheduler)

    def substitute(self) -> Substitute:
        """Return the substitute, resolved, in memory of its own."""
        resolved: object = copied(self.settings).resolve(self.setup())
        expect(isinstance(resolved, Substitute), f"it resolves to {resolved!r}, which is no Substitute")
        assert isinstance(resolved, Substitute)
        return resolved

    @property
    def longest(self) -> int:
        """Refreshes that it asks for, as far as that can be believed."""
        history: object = self.settings.history
        return history if isinstance(history, int) and history > 0 else 1


def _histories(**options: Any) -> Callable[[SubstituteCase], Any]:
    return lambda case: made.histories(longest=case.longest, start=case.start, **options)


def _context(history: History, substitute: Substitute | None, only: Sequence[int] | None = None) -> Context:
    """Return the present; what a substitute does not declare is there all the same, unless one is given."""
    exact = substitute is not None
    signals = substitute.signals if substitute is not None else frozenset(("modulated_input", "timestep_embedding"))
    wants_input = not exact or (substitute is not None and substitute.wants_input)
    wants_branches = not exact or (substitute is not None and substitute.wants_branches)
    return Context(
        history.now,
        history.latents(only),
        history.latents(only, 4) if wants_input else None,
        {name: history.latents(only, 5) for name in sorted(signals)},
        {OTHER: history.latents(only, 6)} if wants_branches else {},
        index=5,
        timesteps=_timesteps(history),
        visited=_visited(history) if substitute is not None and substitute.recalls else (),
        passed=() if substitute is None else _passed(history, substitute, only),
        entered=() if substitute is None or not substitute.wants_input else _passed(history, substitute, only, 40),
    )


def _timesteps(history: History) -> tuple[float, ...]:
    """Return the timesteps of a run from the oldest refresh on, of which the sixth is now."""
    now, top = history.now, max(level for levels in history.levels for level in levels)
    return (*(top + (now - top) * step / 5 for step in range(5)), now, now / 2)


def _visited(history: History) -> tuple[float, ...]:
    """Return the noise levels of all rows' refreshes, newest first: at each something has flowed on in every row."""
    return tuple(sorted({level for levels in history.levels for level in levels}, key=lambda t: abs(t - history.now)))


def _passed(history: History, substitute: Substitute, only: Sequence[int] | None, salt: int = 20) -> tuple[Tensor, ...]:
    count = min(substitute.recalls, len(_visited(history)))
    return tuple(history.latents(only, salt + age) for age in range(count))


def _full(history: History, substitute: Substitute, only: Sequence[int] | None = None) -> Context:
    told, whole = _context(history, substitute, only), _context(history, None, only)
    whole = evolve(whole, visited=told.visited, passed=told.passed, entered=told.entered)
    more = {name: history.latents(only, 5) for name in sorted(substitute.signals)}
    return evolve(whole, signals={**whole.signals, **more})


def _remembered(history: History, substitute: Substitute, only: Sequence[int] | None = None) -> list[Refresh]:
    """Return the refreshes, with the signals and the other branch that the substitute has kept with each."""
    names = sorted(substitute.keeps_signals)
    return [
        evolve(
            refresh,
            signals={name: history.latents(only, 7 + age) for name in names},
            branches={OTHER: history.latents(only, 17 + age)} if substitute.keeps_branches else {},
        )
        for age, refresh in enumerate(history.refreshes(only))
    ]


def _predicted(substitute: Substitute, history: History, only: Sequence[int] | None = None) -> Tensor:
    predicted = substitute.predict(_full(history, substitute, only), _remembered(history, substitute, only))
    output = predicted.output if isinstance(predicted, Prediction) else predicted
    expect(isinstance(output, Tensor), f"predict returned {predicted!r}")
    return output


SUBSTITUTE: Suite[SubstituteCase] = Suite("substitute", SETTINGS)


@SUBSTITUTE.property()
def declares_soundly(case: SubstituteCase) -> None:
    """Its history is an integer >= 1, its guard None or >= 1, its signals are names, its notes sentences."""
    one = case.substitute()
    history: object = one.history
    expect(type(history) is int and history >= 1, f"history is {history!r}")
    expect(one.guard is None or one.guard >= 1, f"guard is {one.guard!r}")
    expect(isinstance(one.signals, frozenset), f"signals is {one.signals!r}")
    expect(all(isinstance(name, str) for name in one.signals), f"signals is {one.signals!r}")
    expect(one.keeps_signals <= one.signals, f"it keeps {one.keeps_signals!r}, and its signals are {one.signals!r}")
    recalls: object = one.recalls
    expect(type(recalls) is int and recalls >= 0, f"recalls is {recalls!r}")
    expect(all(isinstance(note, str) for note in one.notes), f"notes is {one.notes!r}")
    for name in ("wants_input", "wants_branches", "keeps_branches"):
        expect(isinstance(getattr(one, name), bool), f"{name} is {getattr(one, name)!r}")
    expect(one.wants_branches or not one.keeps_branches, "it keeps what other branches returned, and does not want it")


@SUBSTITUTE.property(examples=12, history=_histories(dtypes=DTYPES))
def keeps_shape_and_dtype(case: SubstituteCase, history: History) -> None:
    """The stand-in has the shape and the dtype of the remembered outputs, however short the history is."""
    output, newest = _predicted(case.substitute(), history), history.refreshes()[0].output
    expect(output.shape == newest.shape, f"the shape is {tuple(output.shape)}, of the outputs {tuple(newest.shape)}")
    expect(output.dtype == newest.dtype, f"the dtype is {output.dtype}, of the outputs {newest.dtype}")


@SUBSTITUTE.property(history=_histories())
def leaves_what_is_remembered(case: SubstituteCase, history: History) -> None:
    """`predict` changes nothing of the history."""
    substitute = case.substitute()
    remembered = _remembered(history, substitute)
    before = _parts(copied(remembered))
    substitute.predict(_full(history, substitute), remembered)
    same(difference_between(before, _parts(remembered), "the history"), "predict changed it")


def _parts(history: Sequence[Refresh]) -> list[Any]:
    return [(one.output, one.t, one.filled, one.point, one.input) for one in history]


@SUBSTITUTE.property(history=_histories())
def predicts_the_same_again(case: SubstituteCase, history: History) -> None:
    """The same present and history give the same stand-in, whatever was predicted in between."""
    substitute = case.substitute()
    first = _predicted(substitute, history).clone()
    _predicted(substitute, evolve(history, seed=history.seed + 1))
    same(difference_between(first, _predicted(substitute, history)), "predicted again")


@SUBSTITUTE.property(history=_histories())
def hands_out_memory_of_its_own(case: SubstituteCase, history: History) -> None:
    """No two stand-ins share memory, unless they are remembered tensors: a sampler may change what it gets in place."""
    substitute = case.substitute()
    remembered, again = (_remembered(history, substitute) for _ in range(2))
    one, other = (substitute.predict(_full(history, substitute), refreshes) for refreshes in (remembered, again))
    places = [
        (each.output if isinstance(each, Prediction) else each).untyped_storage().data_ptr() for each in (one, other)
    ]
    expect(places[0] != places[1], "two predictions lie in the same memory")


@SUBSTITUTE.property(examples=12, history=_histories(dtypes=DTYPES))
def rows_have_histories_of_their_own(case: SubstituteCase, history: History) -> None:
    """A row comes out as it does alone, whatever the other rows remember; one that holds nothing spoils no other."""
    substitute = case.substitute()
    together = _predicted(substitute, history)
    for row, levels in enumerate(history.levels):
        if not levels:
            continue
        alone = _predicted(substitute, history, [row])
        _close(together[row], alone[0], f"row {row} of {len(history.levels)}")


def _close(one: Tensor, other: Tensor, what: str) -> None:
    eps = max(torch.finfo(one.dtype).eps, 1e-12)
    scale = float(torch.nan_to_num(other.double().abs(), 1.0, 1.0, 1.0).max().clamp(min=1.0))
    near = torch.isclose(one.double(), other.double(), rtol=16 * eps, atol=64 * eps * scale, equal_nan=True)
    found = difference_between(one, other) if not bool(near.all()) else None
    same(found, what)


@SUBSTITUTE.property(history=_histories())
def works_with_what_it_declares(case: SubstituteCase, history: History) -> None:
    """It looks at no signal, input or other branch that it does not declare."""
    substitute = case.substitute()
    remembered = _remembered(history, substitute)
    if not substitute.wants_input:
        for refresh in remembered:
            refresh.input = None
    substitute.predict(_context(history, substitute), remembered)


@SUBSTITUTE.property(
    seed=lambda _: st.integers(0, 100),
    reused=lambda _: st.frozensets(st.tuples(st.integers(1, 5), st.just(""), st.integers(0, 2)), min_size=1),
)
def what_is_evaluated_is_handed_out(case: SubstituteCase, seed: int, reused: frozenset[tuple[Any, ...]]) -> None:
    """What is evaluated is the model's own, bit for bit, on the latent given; corrected for a row's own stand-ins only.

    A substitute that corrects changes no row but those for which something stood in since their last evaluation. For
    one that wants other branches, another is called before, and evaluated at every step.
    """
    scheduler = case.scheduler
    levels = tuple(case.start * (1 - k / 6) for k in range(6)) if scheduler is None else scheduler.timesteps(6)
    run, batch = RunPlan(levels), Batch(3, 1, seed)
    denoiser, substitute = row_by_row(LinearDenoiser()), case.substitute()
    around = Surroundings(denoiser, case.profile, substitute=substitute)
    branches = ((OTHER, OWN),) if substitute.wants_branches else ()
    pattern = Pattern(reused, branch=OWN if branches else None)
    sampled = Bench(pattern, around).sampled(run, lambda number, branch: batch.latents(number), branches)
    stood_in: set[int] = set()
    outcomes = sampled.outcomes[1::2] if branches else sampled.outcomes
    for number, (t, served) in enumerate(zip(run.calls, outcomes, strict=True)):
        bare, evaluated = denoiser(batch.latents(number), t), set[int]()
        for rows, fresh in served.fresh:
            chosen = list(range(3) if rows is None else rows)
            same(difference_between(fresh, bare[chosen]), f"at t={t:g} the model was given another latent")
            plain = [row for row in chosen if not (substitute.corrects and row in stood_in)]
            kept = fresh[[chosen.index(row) for row in plain]]
            same(difference_between(served.output[plain], kept), f"at t={t:g} rows {plain} were evaluated")
            evaluated |= set(chosen)
        stood_in = (stood_in | set(range(3))) - evaluated


def _no_extrapolation(case: SubstituteCase) -> str | None:
    return None if isinstance(case.substitute(), Extrapolation) else "it is no Extrapolation"


def _extrapolation(case: SubstituteCase) -> Extrapolation:
    substitute = case.substitute()
    assert isinstance(substitute, Extrapolation)
    return substitute


def _usable(case: SubstituteCase, history: History) -> list[tuple[Extrapolation, tuple[float, ...]]]:
    substitute = _extrapolation(case)
    return [(substitute, levels) for levels in history.levels if levels]


@SUBSTITUTE.property(unless=_no_extrapolation, examples=12, history=_histories())
def weights_sum_to_one(case: SubstituteCase, history: History) -> None:
    """The weights of an Extrapolation are finite and sum to 1."""
    for substitute, levels in _usable(case, history):
        weights = substitute.coefficients(history.now, levels)
        size = max(1.0, *(abs(weight) for weight in weights))
        expect(abs(sum(weights) - 1) <= 1e-9 * size, f"{weights} sum to {sum(weights)}, refreshed at {levels}")


@SUBSTITUTE.property(unless=_no_extrapolation, history=_histories(constant=True))
def what_does_not_change_is_reproduced(case: SubstituteCase, history: History) -> None:
    """An Extrapolation of outputs that are all the same is that output."""
    substitute = _extrapolation(case)
    output, newest = _predicted(substitute, history), history.refreshes()[0].output
    for row, levels in enumerate(history.levels):
        if levels:
            size = max(1.0, *(abs(weight) for weight in substitute.coefficients(history.now, levels)))
            far = float((output[row] - newest[row]).abs().max())
            expect(far <= 1e-5 * size, f"row {row} is {far:g} away from what it was at {levels}")


@SUBSTITUTE.property(unless=_no_extrapolation, examples=12, history=_histories(dtypes=DTYPES[:2]))
def predicts_what_the_weights_say(case: SubstituteCase, history: History) -> None:
    """An Extrapolation predicts the sum of the outputs, times their weights."""
    substitute = _extrapolation(case)
    output, remembered = _predicted(substitute, history), history.refreshes()
    for row, levels in enumerate(history.levels):
        if levels:
            weights = substitute.coefficients(history.now, levels)
            exact = torch.stack([w * h.output[row].double() for w, h in zip(weights, remembered, strict=False)]).sum(0)
            size = max(1.0, *(abs(weight) for weight in weights))
            far = float((output[row].double() - exact).abs().max())
            expect(far <= 1e-5 * size, f"row {row} is {far:g} away from weights {weights}, refreshed at {levels}")


@SUBSTITUTE.property(unless=_no_extrapolation, history=_histories())
def many_weights_are_the_single_ones(case: SubstituteCase, history: History) -> None:
    """`many_coefficients` of an Extrapolation says at many points what `coefficients` says at each."""
    for substitute, levels in _usable(case, history):
        many = substitute.many_coefficients(np.array([history.now] * 2), np.array([levels, levels]))
        one = substitute.coefficients(history.now, levels)
        expect(many.shape == (2, len(levels)), f"the shape is {many.shape} for 2 points and {len(levels)} refreshes")
        padded = np.zeros(len(levels))
        padded[: len(one)] = one
        expect(np.allclose(many, padded, rtol=1e-9, atol=1e-9), f"{many.tolist()} for {one}")


@SUBSTITUTE.property(history=_histories())
def stays_within_its_order(case: SubstituteCase, history: History) -> None:
    """It has at most one weight more than its order, remembers no more, and reports no higher order for a row."""
    substitute = case.substitute()
    rows = len(history.levels)
    predicted = substitute.predict(_full(history, substitute), _remembered(history, substitute))
    if isinstance(predicted, Prediction):
        order: object = predicted.order
        expect(isinstance(order, tuple) and len(order) == rows, f"order is {order!r} for {rows} rows")
        for levels, used in zip(history.levels, predicted.order, strict=True):
            expect(not levels or 0 <= used < len(levels), f"order {used} from {len(levels)} refreshes")
    if isinstance(substitute, Extrapolation):
        top = substitute.order
        remembered = top + 1 + int(substitute.corrects)
        expect(substitute.history == remembered, f"history is {substitute.history} for the order {top}")
        for levels in filter(None, history.levels):
            weights = substitute.coefficients(history.now, levels)
            expect(1 <= len(weights) <= min(top + 1, len(levels)), f"{weights} for {len(levels)} refreshes")


def substitute_checks(
    substitute: Substitute,
    *,
    profile: Profile | None = None,
    scheduler: Scheduler | str | None = None,
    start: float = HORIZON,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a substitute, for `parametrize_with_checks`; takes what `check_substitute` takes."""
    case = SubstituteCase(
        substitute,
        calibrated_profile() if profile is None else profile,
        None if scheduler is None else as_scheduler(scheduler),
        start,
    )
    name = label or str(getattr(substitute, "name", substitute))
    return SUBSTITUTE.checks(case, substitute, name, expected_failures)


def check_substitute(substitute: Substitute, **options: Any) -> None:
    """Check that a substitute keeps what `cachepolicies.Substitute` promises.

    ```python
    check_substitute(MySubstitute())
    ```

    What an Extrapolation promises beside is checked where it is one.

    Args:
        substitute: as a user would write it.
        **options: what it needs, where it needs more. ``profile=``: else one that was calibrated on a mixture of
            Gaussians. ``scheduler=``: in use, for what extrapolates in its time. ``start=``: the highest t, else 1000.
            ``label=``: short name for ids. ``expected_failures=``: name of a property to the reason why it does not
            hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(substitute_checks(substitute, **options))
