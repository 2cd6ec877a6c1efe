"""The signal: how large the latent is."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from cachepolicies import Signal, SignalInput, row_rms


@frozen
class LatentRms(Signal):
    """The RMS of every sample's latent, ``(B, 1)``. Nothing from inside the model is needed for it."""

    name: ClassVar[str] = "latent-rms"

    @property
    def inside(self) -> bool:
        """No: the latent is known at any site."""
        return False

    def read(self, at: SignalInput) -> Tensor:
        """Return the RMS ``(B, 1)``, float32 at least."""
        return row_rms(at.x).unsqueeze(1)
