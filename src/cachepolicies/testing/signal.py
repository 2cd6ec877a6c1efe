"""What every signal promises, as checks: `check_signal`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve, field, frozen
from hypothesis import strategies as st
from torch import Tensor, nn

from cachepolicies.adapters.find import adapter_of, blocks_of, registered_adapter
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal, SignalInput
from cachepolicies.registry.load import signals
from cachepolicies.registry.registry import Registry
from cachepolicies.sites._arguments import ArgumentNames
from cachepolicies.sites.signals import read_signal
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.settings import SETTINGS
from cachepolicies.testing.subjects import Subject, block_subject

_ROWS = 3


@frozen(eq=False)
class SignalCase:
    """A signal with a model that has it; see `check_signal`."""

    settings: Signal
    subject: Subject
    registry: Registry[Any] = field(factory=signals)

    def setup(self) -> Setup:
        """Return what the signal is asked with whether it is there."""
        one, adapter = self.subject, self.subject.adapter
        if adapter is None and one.network is not None:
            adapter = registered_adapter(one.network)
        return Setup(model=one.model, network=one.network, adapter=adapter)

    def signal(self) -> Signal:
        """Return the signal, resolved."""
        resolved: object = self.settings.resolve(self.setup())
        expect(isinstance(resolved, Signal), f"it resolves to {resolved!r}, which is no Signal")
        assert isinstance(resolved, Signal)
        return resolved

    def at(self, seed: int, rows: list[int] | None = None) -> SignalInput:
        """Return what is known where the block stack begins, of these rows or of all."""
        inputs = self.subject.inputs(_ROWS, seed, self.subject.t_start)
        if rows is not None:
            inputs = self.subject.taken(inputs, rows)
        x, t = inputs[self.subject.x_name], self.subject.level(inputs)
        network = self.subject.network
        if network is None:
            return SignalInput(x, t, call=inputs)
        adapter = adapter_of(network) if self.subject.adapter is None else self.subject.adapter
        first = next(iter(blocks_of(network, adapter).values()))[0]
        names, seen = ArgumentNames(first), []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen.append(dict(names.bind(args, dict(kwargs))))

        handle = first.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self.subject.bare(inputs)
        finally:
            handle.remove()
        return SignalInput(x, t, network, first, seen[0], inputs)

    @torch.no_grad()
    def read(self, at: SignalInput) -> Tensor:
        """Return the value."""
        value: object = self.signal().read(at)
        expect(isinstance(value, Tensor), f"it is a {type(value).__name__}, not a tensor")
        assert isinstance(value, Tensor)
        return value


_seeds = st.integers(0, 100)

SIGNAL: Suite[SignalCase] = Suite("signal", SETTINGS)


@SIGNAL.property()
def declares_soundly(case: SignalCase) -> None:
    """`inside` and `available` are True or False, and the model that it is tried on has it."""
    inside: object = case.settings.inside
    available: object = case.settings.available(case.setup())
    expect(isinstance(inside, bool), f"inside is {inside!r}")
    expect(isinstance(available, bool), f"available is {available!r}")
    expect(available, f"it is not available on {case.subject.name}; give `subject=` that has it")
    case.settings.available(Setup())  # where there is no model, it answers too


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def has_one_row_a_sample(case: SignalCase, seed: int) -> None:
    """It is a floating-point tensor with one row a sample, or with one row for all."""
    value = case.read(case.at(seed))
    rows = value.shape[0] if value.ndim else 0
    expect(rows == 1 or (rows and rows % _ROWS == 0), f"its shape is {tuple(value.shape)} for {_ROWS} samples")
    expect(value.is_floating_point(), f"its dtype is {value.dtype}")


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def arrives_detached(case: SignalCase, seed: int) -> None:
    """What a policy gets of it carries no gradient, and is memory that stays as it is."""
    at = case.at(seed)
    value = read_signal(case.settings.name, case.signal().read(evolve(at, x=at.x.clone().requires_grad_())), _ROWS, "x")
    expect(not value.requires_grad, "it requires a gradient")
    before = value.clone()
    case.read(case.at(seed + 1))
    same(difference_between(before, value, "the value"), "reading it again changed what was read before")


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def is_the_same_again(case: SignalCase, seed: int) -> None:
    """Read twice at one point it is the same; it keeps no state."""
    at = case.at(seed)
    first = case.read(at).clone()
    case.read(case.at(seed + 1))
    same(difference_between(first, case.read(at), "the value"), "read again")


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def changes_nothing(case: SignalCase, seed: int) -> None:
    """Reading it changes neither the latent nor what the block is called with."""
    at = case.at(seed)
    before = copied((at.x, dict(at.arguments)))
    case.read(at)
    same(difference_between(before, (at.x, dict(at.arguments)), "(x, arguments)"), "reading changed it")


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def is_read_where_it_says(case: SignalCase, seed: int) -> None:
    """A signal that is not `inside` is read from the denoiser's arguments, without a network."""
    if case.settings.inside:
        case.read(case.at(seed))
        return
    at = case.at(seed)
    case.read(SignalInput(at.x, at.t, call=at.call))


@SIGNAL.property(examples=3, seed=lambda _: _seeds)
def needs_no_gradient(case: SignalCase, seed: int) -> None:
    """It can be read where gradients are switched off."""
    at = case.at(seed)
    with torch.inference_mode():
        case.signal().read(at)


@SIGNAL.property(examples=5, seed=lambda _: _seeds)
def a_row_is_its_sample_s(case: SignalCase, seed: int) -> None:
    """A row of it is that of its sample, whatever else is in the batch."""
    whole = case.read(case.at(seed))
    if whole.shape[0] != _ROWS:
        return
    for row in range(_ROWS):
        alone = case.read(case.at(seed, [row]))
        far = float((whole[row] - alone[0]).abs().max()) if whole[row].numel() else 0.0
        expect(far <= 1e-4 * max(1.0, float(alone.abs().max())), f"row {row} is {far:g} away from itself alone")


def signal_checks(
    signal: Signal,
    *,
    subject: Subject | None = None,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of a signal, for `parametrize_with_checks`; takes what `check_signal` takes."""
    case = SignalCase(signal, block_subject() if subject is None else subject)
    return SIGNAL.checks(case, signal, label or str(getattr(signal, "name", signal)), expected_failures)


def check_signal(signal: Signal, **options: Any) -> None:
    """Check that a signal keeps what `cachepolicies.Signal` promises.

    ```python
    check_signal(MySignal())
    ```

    Args:
        signal: as it is registered.
        **options: ``subject=``: a model that has it, else a small network of three blocks. ``label=``: short name for
            ids. ``expected_failures=``: name of a property to the reason why it does not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(signal_checks(signal, **options))
