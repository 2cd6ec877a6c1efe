"""Residual: the current input, with what the last evaluation added to its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.contracts.substitute import Context, Refresh, Substitute


@frozen
class Residual(Substitute):
    """Return ``input + (output - input at the last refresh)``: the stand-in of EasyCache (arXiv 2507.02860).

    The input is what goes into the place: at the denoiser's output, the latent. It has the output's shape there only
    where the model predicts as many channels as it takes. The arithmetic is in float32 at least; it keeps one output
    and one input.
    """

    name: ClassVar[str] = "residual"

    @property
    def history(self) -> int:
        """One refresh."""
        return 1

    @property
    def wants_input(self) -> bool:
        """Yes."""
        return True

    @property
    def adds_input(self) -> bool:
        """Yes."""
        return True

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return the stand-in ``(B, ...)``.

        Raises:
            InputError: the input has not the shape of the output.
        """
        output, now, then = history[0].output, context.input, history[0].input
        if now is None or then is None or not now.shape == then.shape == output.shape:
            given = [None if tensor is None else tuple(tensor.shape) for tensor in (now, then)]
            raise InputError(
                f"substitute {self.name!r} adds output and input, and at place {context.place or 'of the site'!r} the "
                f"output has shape {tuple(output.shape)}, the input now and at the last refresh {given[0]} and "
                f"{given[1]}; use substitute='hold' where the model takes other channels than it predicts"
            )
        dtype = torch.promote_types(output.dtype, torch.float32)
        return (now.to(dtype) + (output.to(dtype) - then.to(dtype))).to(output.dtype)
