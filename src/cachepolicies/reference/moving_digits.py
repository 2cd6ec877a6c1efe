"""Moving digits: a heterogeneous set of small videos, made on the fly.

One or two digits of 12x12 pixels move in straight lines over a 24x24 canvas for 8 frames and bounce off its edges.
Speeds run from standing still to 3 pixels a frame, so that samples differ in how fast their denoising changes. The
latent of a video is its space-to-depth transform: 4 channels, 8 frames, 12x12.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from cachepolicies.reference.digits import Digits

FRAMES, CANVAS, DIGIT = 8, 24, 12
LATENT_SHAPE = (4, FRAMES, CANVAS // 2, CANVAS // 2)
SPEEDS = (0.0, 0.75, 1.5, 3.0)
"""Pixels a frame, by speed class: still, slow, medium, fast."""
NO_DIGIT = 10
"""Class of the second digit in a video that has only one."""
TEXT_TOKENS, TEXT_DIM = 3, 32
PIXEL_MEAN, PIXEL_STD = 0.1, 0.25
SINGLE_DIGIT_SHARE = 0.6


@frozen
class Captions:
    """What the videos of a batch show, one row each.

    Attributes:
        first: ``(n,)`` int64, class of the first digit, 0 to 9.
        second: ``(n,)`` int64, class of the second digit, or `NO_DIGIT`.
        speed: ``(n,)`` int64, index into `SPEEDS`.
    """

    first: Tensor
    second: Tensor
    speed: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def embed(self) -> Tensor:
        """Return ``(n, 3, 32)`` float32: one one-hot token each for first digit, second digit and speed."""
        tokens = torch.stack([self.first, 10 + self.second, 21 + self.speed], dim=1)
        return F.one_hot(tokens, TEXT_DIM).to(torch.float32)


def null_embedding(n: int) -> Tensor:
    """Return the ``(n, 3, 32)`` embedding of *no caption*, used for classifier-free guidance."""
    return torch.zeros(n, TEXT_TOKENS, TEXT_DIM)


def draw_captions(n: int, generator: torch.Generator, single: bool | None = None) -> Captions:
    """Draw captions of the training distribution.

    Args:
        n: how many.
        generator: source of randomness.
        single: ``True`` for one digit only, ``False`` for two, ``None`` for the training mixture.

    Returns:
        ``n`` captions.
    """
    first = torch.randint(10, (n,), generator=generator)
    other = torch.randint(10, (n,), generator=generator)
    share = SINGLE_DIGIT_SHARE if single is None else float(single)
    alone = torch.rand(n, generator=generator) < share
    speed = torch.randint(len(SPEEDS), (n,), generator=generator)
    return Captions(first, torch.where(alone, NO_DIGIT, other), speed)


def render(captions: Captions, digits: Digits, generator: torch.Generator) -> Tensor:
    """Draw one video for every caption.

    Args:
        captions: what to show.
        digits: the images to choose from.
        generator: source of start points, directions and the handwriting chosen.

    Returns:
        ``(n, 8, 24, 24)`` float32 in [0, 1].
    """
    first = _moving_digit(captions.first, captions.speed, digits, generator)
    second = _moving_digit(captions.second % 10, captions.speed, digits, generator)
    present = (captions.second != NO_DIGIT)[:, None, None, None]
    return torch.maximum(first, second * present)


def encode(videos: Tensor) -> Tensor:
    """Standardise the pixels and fold 2x2 blocks into channels: ``(n, 8, 24, 24)`` to ``(n, 4, 8, 12, 12)``."""
    folded = F.pixel_unshuffle(videos[:, :, None], 2)
    return ((folded - PIXEL_MEAN) / PIXEL_STD).transpose(1, 2)


def decode(latents: Tensor) -> Tensor:
    """Invert `encode` and clip to [0, 1]: ``(n, 4, 8, 12, 12)`` to ``(n, 8, 24, 24)``."""
    return F.pixel_shuffle(latents.transpose(1, 2) * PIXEL_STD + PIXEL_MEAN, 2)[:, :, 0].clamp(0.0, 1.0)


def _moving_digit(label: Tensor, speed: Tensor, digits: Digits, generator: torch.Generator) -> Tensor:
    images = _one_image_per_label(label, digits, generator)
    n, room = len(label), float(CANVAS - DIGIT)
    start = torch.rand(n, 2, generator=generator) * room
    angle = torch.rand(n, generator=generator) * 2.0 * torch.pi
    velocity = torch.tensor(SPEEDS)[speed][:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    time = torch.arange(FRAMES, dtype=torch.float32) - FRAMES / 2
    unfolded = start[:, None] + velocity[:, None] * time[None, :, None]
    corner = room - (unfolded.remainder(2.0 * room) - room).abs()  # bounce: a triangle wave of period 2 * room
    return _on_canvas(images, corner)


def _one_image_per_label(label: Tensor, digits: Digits, generator: torch.Generator) -> Tensor:
    matches = (digits.labels[None, :] == label[:, None]).float()
    return digits.images[torch.multinomial(matches, 1, generator=generator)[:, 0]]


def _on_canvas(images: Tensor, corner: Tensor) -> Tensor:
    """Put ``(n, 12, 12)`` images on the canvas with their top left corner at ``(n, f, 2)``, sub-pixel by bilinear."""
    n, frames = corner.shape[:2]
    pixel = torch.arange(CANVAS, dtype=torch.float32)
    # grid_sample's own coordinates, align_corners=False: -1 is the left edge of the digit, +1 its right edge
    rows = (2.0 * (pixel - corner[..., 0:1]) + 1.0) / DIGIT - 1.0
    columns = (2.0 * (pixel - corner[..., 1:2]) + 1.0) / DIGIT - 1.0
    grid = torch.stack(
        [
            columns[:, :, None, :].expand(n, frames, CANVAS, CANVAS),
            rows[:, :, :, None].expand(n, frames, CANVAS, CANVAS),
        ],
        dim=-1,
    )
    repeated = images[:, None].expand(n, frames, DIGIT, DIGIT).reshape(n * frames, 1, DIGIT, DIGIT)
    canvas = F.grid_sample(repeated, grid.reshape(n * frames, CANVAS, CANVAS, 2), align_corners=False)
    return canvas.reshape(n, frames, CANVAS, CANVAS)
