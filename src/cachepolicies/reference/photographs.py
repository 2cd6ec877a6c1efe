"""Small crops of two photographs (scikit-learn's sample images), what the unguided U-Net draws."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 24
PIXEL_MEAN, PIXEL_STD = 0.41, 0.62
"""Pixels in [0, 1] become ``(pixel - PIXEL_MEAN) / PIXEL_STD``: mean 0 and standard deviation near 0.5."""

HELD_OUT_FRACTION = 0.2
"""Fraction of the width, on the right, that no training script sees."""


@functools.cache
def load_photographs(split: str) -> tuple[Tensor, ...]:
    """Load one side of the two photographs at half their size.

    Args:
        split: ``"train"`` (the left 80 % of the width) or ``"held-out"`` (the rest).

    Returns:
        Two tensors ``(3, 213, W)``, float32 in [0, 1]: a Chinese temple and a flower.

    Raises:
        ValueError: ``split`` is neither of the two.
    """
    from sklearn.datasets import load_sample_images

    if split not in ("train", "held-out"):
        raise ValueError(f"split is {split!r}; use 'train' or 'held-out'")
    sides = []
    for image in load_sample_images().images:
        pixels = torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None] / 255.0
        half = F.avg_pool2d(pixels, 2)[0]
        edge = round((1.0 - HELD_OUT_FRACTION) * half.shape[-1])
        sides.append(half[..., :edge] if split == "train" else half[..., edge:])
    return tuple(sides)


def draw_crops(n: int, generator: torch.Generator, split: str = "train") -> Tensor:
    """Draw standardised crops, each mirrored half of the time.

    Args:
        n: how many.
        generator: source of photograph, place and mirroring.
        split: see `load_photographs`.

    Returns:
        ``(n, 3, 24, 24)`` float32.
    """
    photographs = load_photographs(split)
    crops = []
    for _ in range(n):
        photograph = photographs[int(torch.randint(len(photographs), (1,), generator=generator))]
        top = int(torch.randint(photograph.shape[1] - SIDE + 1, (1,), generator=generator))
        left = int(torch.randint(photograph.shape[2] - SIDE + 1, (1,), generator=generator))
        crop = photograph[:, top : top + SIDE, left : left + SIDE]
        mirrored = bool(torch.rand(1, generator=generator) < 0.5)
        crops.append(crop.flip(-1) if mirrored else crop)
    return (torch.stack(crops) - PIXEL_MEAN) / PIXEL_STD


def pixels(latents: Tensor) -> Tensor:
    """Undo the standardisation and clip to [0, 1]: ``(B, 3, 24, 24)`` to ``(B, 3, 24, 24)``."""
    return (latents * PIXEL_STD + PIXEL_MEAN).clamp(0.0, 1.0)


def luminance(latents: Tensor) -> Tensor:
    """Return the brightness of the pixels (Rec. 601): ``(B, 3, 24, 24)`` to ``(B, 24, 24)`` in [0, 1]."""
    return torch.einsum("bchw,c->bhw", pixels(latents), torch.tensor([0.299, 0.587, 0.114]))
