"""The contract of a signal: a value about a call, from inside the model or from outside, that a policy can name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies.contracts.declared import Contract

if TYPE_CHECKING:
    from cachepolicies.contracts.setup import Setup


@frozen(eq=False)
class SignalInput:
    """What a signal is computed from.

    Attributes:
        x: ``(B, ...)`` the latent that the denoiser was called with.
        t: noise level.
        network: the module inside the denoiser, ``None`` where there is none.
        block: the first block of its stack, ``None`` outside.
        arguments: what that block is called with, by name; empty outside.
        call: what the denoiser is called with, by name, as far as its parameters have names.
    """

    x: Tensor
    t: float
    network: nn.Module | None = None
    block: nn.Module | None = None
    arguments: Mapping[str, Any] = field(factory=dict, repr=False)
    call: Mapping[str, Any] = field(factory=dict, repr=False)


class Signal(Contract, declares=True):
    """A value ``(B, ...)`` about a call. Frozen settings, no state. Only ``read`` has to be written.

    A signal is registered by its name through the hook ``cachepolicies_register_signals``, or an adapter has one for
    the classes it serves. Any policy, and any substitute, may declare it; it is computed where it is declared, and
    nowhere else. Nothing has to know its name beforehand.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in errors; users write the registered one; a class attribute."""

    @property
    def inside(self) -> bool:
        """Whether it is read where the block stack begins; if not, from the denoiser's arguments, at any site."""
        return True

    def available(self, setup: Setup) -> bool:
        """Return whether this network has it; every one by default."""
        return True

    def resolve(self, setup: Setup) -> Signal:
        """Return the signal that works in this set-up; itself unless it says otherwise. Called once."""
        return self

    @abstractmethod
    def read(self, at: SignalInput) -> Tensor:
        """Return the value.

        Args:
            at: what is known at this point of the forward.

        Returns:
            ``(B, ...)``, or ``(1, ...)`` where it is the same for the whole batch. Gradients are not needed.
        """
