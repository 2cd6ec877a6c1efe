"""How far pictures are from the uncached ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cachepolicies.base.errors import InputError

SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window (Wang et al. 2004); smaller pictures have no SSIM."""


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio with a data range of 1, from torchmetrics.

    Args:
        pictures: ``(B, frames, H, W)`` in [0, 1].
        reference: as many.

    Returns:
        ``(B,)`` float64 in dB, over all frames of a sample; ``inf`` where they are identical.

    Raises:
        InputError: the shapes differ.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _check_shapes(pictures, reference)
    values: Tensor = peak_signal_noise_ratio(
        pictures.double(), reference.double(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.reshape(len(pictures))


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity with a data range of 1, from torchmetrics, frame by frame.

    Args:
        pictures: ``(B, frames, H, W)`` in [0, 1].
        reference: as many.

    Returns:
        ``(B,)`` float64, the mean over the frames; ``nan`` for pictures smaller than the window of 11 x 11 pixels.

    Raises:
        InputError: the shapes differ.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_shapes(pictures, reference)
    count, frames = pictures.shape[:2]
    if min(pictures.shape[2:]) < SSIM_WINDOW:
        return torch.full((count,), math.nan, dtype=torch.float64)
    values: Tensor = structural_similarity_index_measure(
        pictures.double().flatten(0, 1)[:, None],
        reference.double().flatten(0, 1)[:, None],
        data_range=1.0,
        reduction="none",
    )
    return values.reshape(count, frames).mean(dim=1)


def _check_shapes(pictures: Tensor, reference: Tensor) -> None:
    if pictures.shape != reference.shape or pictures.ndim != 4:
        raise InputError(
            f"pictures of shape {tuple(pictures.shape)} cannot be compared with {tuple(reference.shape)}; "
            "both are (B, frames, H, W)"
        )
