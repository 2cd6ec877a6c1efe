"""Signals at a site: which ones there are, and reading one."""

from __future__ import annotations

from torch import Tensor

from cachepolicies.base.errors import InputError, PluginError
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal
from cachepolicies.registry.load import signals
from cachepolicies.sites._rows import by_sample, copies_of


def registered_signals(setup: Setup) -> dict[str, Signal]:
    """Return the registered signals that a network has, resolved, by name.

    Raises:
        PluginError: what is registered under a name makes no signal, or resolves to none.
    """
    found: dict[str, Signal] = {}
    for name in signals().names():
        made: object = signals().create(name)
        if not isinstance(made, Signal):
            raise PluginError(f"signal {name!r} made a {type(made).__name__}; a factory returns a cachepolicies.Signal")
        if made.available(setup):
            resolved: object = made.resolve(setup)
            if not isinstance(resolved, Signal):
                raise PluginError(f"signal {name!r} resolved to a {type(resolved).__name__}, not to a Signal")
            found[name] = resolved
    return found


def outside_signals(setup: Setup) -> dict[str, Signal]:
    """Return the registered signals that are read from what the denoiser is called with, by name."""
    return {name: signal for name, signal in registered_signals(setup).items() if not signal.inside}


def read_signal(name: str, value: Tensor, rows: int, what: str, together: int = 1) -> Tensor:
    """Return a signal's value with one row a sample, detached.

    Args:
        name: of the signal.
        value: ``(k * rows, ...)``, or ``(1, ...)`` where it is the same for all.
        rows: of the caller's batch.
        what: it is read from, for messages.
        together: how many rows of one sample stand next to each other, where it has several.

    Raises:
        InputError: it has another number of rows.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"signal {name!r} of {what} is a {type(value).__name__}, not a tensor (B, ...)")
    value = value.detach()
    if value.ndim and value.shape[0] == 1 != rows:
        value = value.expand(rows, *value.shape[1:])
    what = f"signal {name!r} of {what}"
    copies = copies_of(value, rows, what)
    return by_sample(value, rows, what, 1 if copies % together else together)
