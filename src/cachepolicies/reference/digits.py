"""Handwritten digits (scikit-learn's copy of the UCI set), the raw material of the reference models."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

HELD_OUT_FRACTION = 0.2
"""Fraction of the images that no training script sees; the classifier's accuracy is measured on it."""


@frozen
class Digits:
    """Images with their labels.

    Attributes:
        images: ``(n, 12, 12)`` float32 in [0, 1], the 8x8 originals upsampled bilinearly.
        labels: ``(n,)`` int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor


@functools.cache
def load_digits(split: str, size: int = 12) -> Digits:
    """Load one split of the 1,797 digits of scikit-learn.

    Args:
        split: ``"train"`` (the first 80 % of a fixed permutation) or ``"held-out"`` (the rest).
        size: side of the returned images in pixels.

    Returns:
        The split, images upsampled from 8x8 to ``size`` x ``size``.

    Raises:
        ValueError: ``split`` is neither of the two.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    if split not in ("train", "held-out"):
        raise ValueError(f"split is {split!r}; use 'train' or 'held-out'")
    data = sklearn_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    labels = torch.as_tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(20260101))
    held_out = round(HELD_OUT_FRACTION * len(labels))
    chosen = order[held_out:] if split == "train" else order[:held_out]
    upsampled = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    return Digits(upsampled[chosen], labels[chosen])
