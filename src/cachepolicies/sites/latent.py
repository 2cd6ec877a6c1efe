"""The latent along its axes: a signal that any site supplies."""

from __future__ import annotations

from typing import ClassVar

from attrs import evolve, field, frozen
from torch import Tensor

from cachepolicies.contracts.adapter import Unpack
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal, SignalInput


@frozen
class SpatialLatent(Signal):
    """The latent that the denoiser is called with, as ``(B, C, *axes)``.

    Where the class of the network packs it into tokens, or orders it in another way, its adapter says how it lies on
    its grid. Without an adapter, and where the adapter says nothing, the latent is returned as it is, so that
    ``(B, L, C)`` is taken for one axis of C values; there is nothing to tell it from a sound by.

    Attributes:
        unpack: of the adapter; filled in at set-up.
    """

    name: ClassVar[str] = "spatial-latent"

    unpack: Unpack | None = field(default=None, repr=False)

    @property
    def inside(self) -> bool:
        """No: it is read from the denoiser's own arguments."""
        return False

    def resolve(self, setup: Setup) -> SpatialLatent:
        """Return the signal that knows the network's adapter."""
        return self if setup.adapter is None else evolve(self, unpack=setup.adapter.unpack)

    def read(self, at: SignalInput) -> Tensor:
        """Return the latent ``(B, C, *axes)``.

        Raises:
            InputError: the arguments of the call do not say how it lies on its grid.
        """
        return at.x if self.unpack is None else self.unpack(at.x, at.call)
