"""Train the digit classifier that judges the samples: ``python training/train_classifier.py``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import attrs
import torch
from attrs import frozen
from rich.progress import track
from torch import Tensor, nn

from cachepolicies.reference import moving_digits
from cachepolicies.reference.classifier import WEIGHTS, DigitClassifier
from cachepolicies.reference.digits import load_digits
from loop import publish

HELD_OUT_FRAMES = 2000


@frozen
class ClassifierSettings:
    """Settings of the training; pixel noise and contrast make it tolerant of generated, slightly soft digits."""

    iterations: int
    videos: int = 16
    frames_per_video: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    pixel_noise: float = 0.08
    least_contrast: float = 0.7
    seed: int = 0


def single_digit_frames(split: str, n: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Render single-digit videos and take some frames of each.

    Args:
        split: of the handwriting, ``"train"`` or ``"held-out"``.
        n: how many videos.
        frames: how many frames of each, drawn without replacement.
        generator: source of randomness.

    Returns:
        Frames ``(n * frames, 24, 24)`` in [0, 1] and their labels ``(n * frames,)``.
    """
    captions = moving_digits.draw_captions(n, generator, single=True)
    videos = moving_digits.render(captions, load_digits(split), generator)
    chosen = torch.rand(n, moving_digits.FRAMES, generator=generator).argsort(dim=1)[:, :frames]
    return videos[torch.arange(n)[:, None], chosen].flatten(0, 1), captions.first.repeat_interleave(frames)


def train(settings: ClassifierSettings) -> tuple[DigitClassifier, list[float]]:
    """Train with AdamW and a cosine learning rate; return the model, in evaluation mode, and the loss curve."""
    torch.manual_seed(settings.seed)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    losses = []
    for iteration in track(range(settings.iterations), description="training"):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
        frames, labels = single_digit_frames("train", settings.videos, settings.frames_per_video, generator)
        scale = 1.0 - (1.0 - settings.least_contrast) * torch.rand(len(frames), 1, 1, generator=generator)
        noise = settings.pixel_noise * torch.rand(len(frames), 1, 1, generator=generator)
        noisy = frames * scale + noise * torch.randn(frames.shape, generator=generator)
        loss = nn.functional.cross_entropy(model(noisy.clamp(0.0, 1.0)[:, None]), labels)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
    return model.eval().requires_grad_(False), losses


def accuracy(model: DigitClassifier, split: str) -> float:
    """Return the share of right labels on `HELD_OUT_FRAMES` frames, each of its own video, of one split."""
    generator = torch.Generator().manual_seed(20260102)
    frames, labels = single_digit_frames(split, HELD_OUT_FRAMES, 1, generator)
    right: Tensor = model(frames[:, None]).argmax(dim=1) == labels
    return right.double().mean().item()


def main() -> None:
    """Train, measure, then write the weights, their provenance and the loss curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    settings = ClassifierSettings(iterations=arguments.iterations)
    model, losses = train(settings)
    measured = {"train": accuracy(model, "train"), "held-out": accuracy(model, "held-out")}
    provenance: dict[str, object] = {
        "model": "cachepolicies.reference.classifier.DigitClassifier",
        "data": "frames of single moving digits from scikit-learn load_digits (UCI), training split",
        "objective": "cross-entropy",
        "script": "training/train_classifier.py",
        "settings": attrs.asdict(settings),
        "accuracy": {**measured, "frames": HELD_OUT_FRAMES},
    }
    publish(model, arguments.out, provenance)
    with arguments.out.with_suffix(".loss.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "loss"])
        every = 20
        for end in range(every, len(losses) + 1, every):
            writer.writerow([end, f"{sum(losses[end - every : end]) / every:.5f}"])
    print(f"accuracy: {measured['held-out']:.4f} held out, {measured['train']:.4f} train")


if __name__ == "__main__":
    main()
