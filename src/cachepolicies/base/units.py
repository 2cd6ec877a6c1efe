"""Norms as the whole library means them: root mean square per element, one value per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def row_rms(v: Tensor) -> Tensor:
    """Return ``||v||_2 / sqrt(numel of one sample)`` for each sample of a batch.

    Per element, so that a tolerance means the same at every resolution.

    Args:
        v: ``(B, ...)``, any number of further dimensions.

    Returns:
        ``(B,)`` float64 where v is float64, else float32: half precision is squared and summed in float32.
    """
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    rows = v.reshape(v.shape[0], -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    return norms / math.sqrt(rows.shape[1])


def row_maximum(v: Tensor) -> Tensor:
    """Return the largest magnitude of every row, ``(B, ...)`` to ``(B,)``: finite exactly if the whole row is."""
    return v.reshape(v.shape[0], -1).abs().amax(dim=1)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a - b`` in float32 at least, so that small changes of low-precision latents are not rounded away."""
    if a.dtype in (torch.float32, torch.float64):
        return a - b
    return a.float() - b.float()
