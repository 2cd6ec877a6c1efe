"""Train the reference image DiT on digits: ``python training/train_image_dit.py``."""

from __future__ import annotations

import shutil

import attrs
import torch
from torch import Tensor, nn

from cachepolicies.reference.digits import load_digits
from cachepolicies.reference.image_dit import (
    LATENT_SHAPE,
    NULL_LABEL,
    PIXEL_MEAN,
    PIXEL_STD,
    SCHEDULE,
    TWIN_WEIGHTS,
    WEIGHTS,
    build_image_dit,
)
from loop import Settings, publish, train
from options import parse_options

LABEL_DROP = 0.1
LARGEST_SHIFT = 1
"""Pixels that an image is moved by, at most, in either direction."""


def alphas_cumprod() -> Tensor:
    """Return ``alpha(t)**2`` at the 1000 integer timesteps of the linear-beta schedule (DDPM, arXiv 2006.11239)."""
    betas = torch.linspace(
        SCHEDULE["beta_start"], SCHEDULE["beta_end"], SCHEDULE["num_train_timesteps"], dtype=torch.float64
    )
    return (1.0 - betas).cumprod(0).float()


def draw_images(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw standardised, slightly shifted training images ``(n, 1, 16, 16)`` and their labels ``(n,)``."""
    side = LATENT_SHAPE[-1]
    digits = load_digits("train", size=side)
    chosen = torch.randint(len(digits.labels), (n,), generator=generator)
    padded = nn.functional.pad(digits.images[chosen], (LARGEST_SHIFT,) * 4)
    corner = torch.randint(2 * LARGEST_SHIFT + 1, (n, 2), generator=generator)
    window = torch.arange(side)
    rows, columns = corner[:, 0, None] + window, corner[:, 1, None] + window
    shifted = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return ((shifted - PIXEL_MEAN) / PIXEL_STD)[:, None], digits.labels[chosen]


def noise_prediction_loss(model: nn.Module, generator: torch.Generator, batch_size: int, level: Tensor) -> Tensor:
    """Mean squared error of the noise on a fresh batch of digits.

    Args:
        model: the network.
        generator: source of images, shifts, timesteps, noise and dropped labels.
        batch_size: how many images.
        level: ``(1000,)`` alpha squared by timestep.

    Returns:
        The scalar loss.
    """
    data, labels = draw_images(batch_size, generator)
    noise = torch.randn(data.shape, generator=generator)
    t = torch.randint(len(level), (batch_size,), generator=generator)
    dropped = torch.rand(batch_size, generator=generator) < LABEL_DROP
    alpha_squared = level[t][:, None, None, None]
    x = alpha_squared.sqrt() * data + (1.0 - alpha_squared).sqrt() * noise
    (predicted,) = model(x, t, class_labels=torch.where(dropped, NULL_LABEL, labels), return_dict=False)
    return nn.functional.mse_loss(predicted.float(), noise)


def main() -> None:
    """Train, then write the weights, their provenance and the loss curve."""
    options = parse_options(__doc__, weights=WEIGHTS, twin=TWIN_WEIGHTS, iterations=[2000])
    settings = Settings(iterations=options.iterations[-1], batch_size=32, bfloat16=False, seed=options.seed)
    torch.manual_seed(settings.seed)
    # Evaluation mode: in training mode every block of diffusers' DiT drops labels by a draw of its own, from the global
    # generator, so that one image would be conditioned in some blocks only. The loss drops them once for all blocks.
    # Nothing else in this network depends on the mode (its dropout is 0).
    model = build_image_dit().eval()
    level = alphas_cumprod()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return noise_prediction_loss(model, generator, settings.batch_size, level)

    train(model, loss, settings, options.work)
    provenance: dict[str, object] = {
        "model": "diffusers.DiTTransformer2DModel",
        "data": "scikit-learn load_digits (UCI) at 16x16, training split, shifted by up to one pixel",
        "objective": "noise prediction on the 1000-step linear-beta schedule, timesteps uniform",
        "script": "training/train_image_dit.py",
        "settings": attrs.asdict(settings),
    }
    publish(model, options.out, provenance)
    shutil.copy(options.work / "loss.csv", options.out.with_suffix(".loss.csv"))


if __name__ == "__main__":
    main()
