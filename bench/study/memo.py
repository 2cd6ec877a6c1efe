"""A denoiser that is evaluated once at each point: many rows of the study begin with the same steps."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_MOST = 25_000
"""Outputs that are kept, about 18 kB each for the video model."""


class Memo:
    """Return the remembered output where x, t and condition of a sample are bit for bit those of an earlier call.

    What a policy skips or asks for is not touched, nor is the count of evaluations, which the trace has. At the block
    stack there is nothing to remember: the network itself has to be called.
    """

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        self.asked = self.computed = 0
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Evaluate the samples ``(B, ...)`` that are not known yet."""
        keys = [_key(x[row], t[row], condition[row]) for row in range(x.shape[0])]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        self.asked += len(keys)
        self.computed += len(new)
        if new:
            fresh = self.denoiser(x[new], t[new], condition[new])
            for row, output in zip(new, fresh, strict=True):
                self._known[keys[row]] = output.clone()
        result = torch.stack([self._known[key] for key in keys])
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return result


def _key(*parts: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.digest()
