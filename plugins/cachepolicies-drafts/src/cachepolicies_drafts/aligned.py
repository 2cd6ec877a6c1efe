"""The stand-in of DiCache (Bu et al., arXiv 2508.17356): the last two residuals, combined as the probe says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies import Context, Refresh, Substitute


@frozen
class Aligned(Substitute):
    """Continue from the last two residuals of the whole stack as far as the first blocks' own have gone.

    With P what the first blocks add to the stream, now (P), at the last evaluation (P1) and at the one before (P2), and
    R1 and R2 what the whole stack added then, the whole stack is taken to add ``R2 + g (R1 - R2)`` now, with ``g =
    mean|P - P2| / mean|P1 - P2|``, from 1 to 2. What the first blocks have added already is taken off. Where there is
    one evaluation only, its residual is held.

    It needs the signals ``prefix`` and ``prefix_streams``, which sites behind some blocks have. It computes in float32
    at least.
    """

    name: ClassVar[str] = "aligned"

    @property
    def history(self) -> int:
        """Two refreshes."""
        return 2

    @property
    def signals(self) -> frozenset[str]:
        """What the first blocks have added: to what is heard behind the stack, and to every stream."""
        return frozenset(("prefix", "prefix_streams"))

    @property
    def keeps_signals(self) -> frozenset[str]:
        """Both, at each refresh."""
        return self.signals

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return what the blocks behind the first add, ``(B, ...)``."""
        dtype = torch.promote_types(history[0].output.dtype, torch.float32)
        whole = _whole(history[0], dtype)
        if len(history) > 1:
            older = history[1]
            now, last, earlier = (
                signals["prefix"].to(dtype) for signals in (context.signals, history[0].signals, older.signals)
            )
            gone = _mean(last - earlier)
            ratio = (_mean(now - earlier) / gone).clamp(1.0, 2.0)
            there = torch.as_tensor(older.filled, device=whole.device) & (gone > 0)
            shape = (-1, *[1] * (whole.ndim - 1))
            first = _whole(older, dtype)
            whole = torch.where(there.reshape(shape), first + ratio.reshape(shape) * (whole - first), whole)
        return (whole - context.signals["prefix_streams"].to(dtype)).to(history[0].output.dtype)


def _whole(refresh: Refresh, dtype: torch.dtype) -> Tensor:
    """Return what the whole stack added at an evaluation."""
    return refresh.output.to(dtype) + refresh.signals["prefix_streams"].to(dtype)


def _mean(values: Tensor) -> Tensor:
    """Return the mean size of every row's values."""
    return values.abs().flatten(1).mean(1)
