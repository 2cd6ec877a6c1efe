"""A small classifier that says which digit a frame shows: the judge of what the trained models draw."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cachepolicies.base.errors import InputError
from cachepolicies.reference.moving_digits import CANVAS, DIGIT

WEIGHTS = Path(__file__).parent / "weights" / "digit-classifier.safetensors"

IMAGE_SIZE = 16
"""Side of the images of the trained image DiT."""
CHUNK = 256
"""Frames classified at a time, so that memory does not grow with their number."""


class DigitClassifier(nn.Module):
    """Four convolutions and a global maximum, 47 thousand parameters.

    The maximum over all positions makes the answer depend little on where the digit is. Maps frames
    ``(n, 1, 24, 24)`` in [0, 1] to logits ``(n, 10)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 16),
            nn.MaxPool2d(2),
            *_block(16, 32),
            *_block(32, 48),
            nn.MaxPool2d(2),
            *_block(48, 64),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits ``(n, 10)`` of frames ``(n, 1, 24, 24)``."""
        logits: Tensor = self.head(self.features(frames).amax(dim=(2, 3)))
        return logits


def load_classifier() -> DigitClassifier:
    """Build the classifier with its trained weights, float32, in evaluation mode.

    Raises:
        FileNotFoundError: the weights are not beside this module.
    """
    model = DigitClassifier()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval().requires_grad_(False)


def classify(frames: Tensor) -> Tensor:
    """Say which digit each frame shows.

    Args:
        frames: ``(n, 24, 24)`` floating point, in [0, 1], each with one digit anywhere on it.

    Returns:
        ``(n,)`` int64 labels, 0 to 9, on the CPU.

    Raises:
        InputError: the frames have another shape or are not floating point.
    """
    if frames.ndim != 3 or frames.shape[1:] != (CANVAS, CANVAS) or not frames.is_floating_point():
        raise InputError(
            f"frames have shape {tuple(frames.shape)} and dtype {frames.dtype}; "
            f"pass floating-point frames of shape (n, {CANVAS}, {CANVAS})"
        )
    model = _shared_classifier()
    with torch.no_grad():
        chunks = torch.split(frames.detach().to("cpu", torch.float32)[:, None], CHUNK)
        return torch.cat([model(chunk).argmax(dim=1) for chunk in chunks])


def classify_digit_images(images: Tensor) -> Tensor:
    """Say which digit each 16x16 image shows: shrink it to 12x12, put it in the middle of a frame, `classify`.

    Args:
        images: ``(n, 16, 16)`` or ``(n, 1, 16, 16)`` floating point, pixels in [0, 1], as the trained image DiT draws
            them after its standardisation is undone.

    Returns:
        ``(n,)`` int64 labels, 0 to 9, on the CPU.

    Raises:
        InputError: the images have another shape or are not floating point.
    """
    stacked = images[:, None] if images.ndim == 3 else images
    if stacked.ndim != 4 or stacked.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE) or not images.is_floating_point():
        raise InputError(
            f"images have shape {tuple(images.shape)} and dtype {images.dtype}; "
            f"pass floating-point images of shape (n, {IMAGE_SIZE}, {IMAGE_SIZE}) or (n, 1, {IMAGE_SIZE}, {IMAGE_SIZE})"
        )
    small = nn.functional.interpolate(
        stacked.detach().to("cpu", torch.float32), size=(DIGIT, DIGIT), mode="bilinear", align_corners=False
    )
    margin = (CANVAS - DIGIT) // 2
    return classify(nn.functional.pad(small[:, 0], (margin,) * 4))


@functools.cache
def _shared_classifier() -> DigitClassifier:
    return load_classifier()


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
