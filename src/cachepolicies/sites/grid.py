"""The grid of a stream's tokens: a signal that any site supplies."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from cachepolicies.base.errors import NeedsError
from cachepolicies.contracts.adapter import TokensOf
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal, SignalInput


@frozen
class TokenGrid(Signal):
    """How many tokens of the stream lie along each axis: time, height and width, as far as there are.

    The adapter of the network's class says it. The tokens lie one after the other, row by row, so that a stream
    ``(B, L, C)`` is ``(B, *grid, C)``. The value stays on the host: reading it waits for no device.

    Attributes:
        tokens: of the adapter; filled in at set-up.
        network: whose stream it is; filled in at set-up.
    """

    name: ClassVar[str] = "token-grid"

    tokens: TokensOf | None = field(default=None, repr=False)
    network: nn.Module | None = field(default=None, repr=False)

    @property
    def inside(self) -> bool:
        """No: it is read from the denoiser's own arguments."""
        return False

    def available(self, setup: Setup) -> bool:
        """Return whether the adapter of the network's class knows it."""
        return setup.network is not None and setup.adapter is not None and setup.adapter.tokens is not None

    def resolve(self, setup: Setup) -> TokenGrid:
        """Return the signal that knows the network and its adapter."""
        return self if setup.adapter is None else evolve(self, tokens=setup.adapter.tokens, network=setup.network)

    def read(self, at: SignalInput) -> Tensor:
        """Return the sizes ``(1, axes)`` as float64, on the host.

        Raises:
            InputError: the arguments of the call do not say them.
            NeedsError: there is no network, or its adapter does not know.
        """
        if self.tokens is None or self.network is None:
            raise NeedsError(
                f"signal {self.name!r} needs an adapter whose `tokens` says on which grid the tokens of the network lie"
            )
        return torch.tensor([self.tokens(self.network, at.x, at.call)], dtype=torch.float64)
