"""Train the reference photo U-Net on crops of photographs: ``python training/train_photo_unet.py``."""

from __future__ import annotations

import shutil

import attrs
import torch
from torch import Tensor, nn

from cachepolicies.reference import photographs
from cachepolicies.reference.photo_unet import SIGMA_DATA, TWIN_WEIGHTS, WEIGHTS, build_photo_unet, training_levels
from loop import Settings, publish, train
from options import parse_options


def denoising_loss(model: nn.Module, generator: torch.Generator, batch_size: int) -> Tensor:
    """Mean squared error of the data with the weights of EDM (arXiv 2206.00364, table 1) on fresh crops."""
    data = photographs.draw_crops(batch_size, generator)
    sigma = training_levels(batch_size, generator)
    level = sigma[:, None, None, None]
    noise = torch.randn(data.shape, generator=generator)
    denoised = model(data + level * noise, sigma).float()
    weight = (level.square() + SIGMA_DATA**2) / (level * SIGMA_DATA).square()
    loss: Tensor = (weight * (denoised - data).square()).mean()
    return loss


def main() -> None:
    """Train, then write the weights, their provenance and the loss curve."""
    options = parse_options(__doc__, weights=WEIGHTS, twin=TWIN_WEIGHTS, iterations=[3000])
    settings = Settings(
        iterations=options.iterations[-1], batch_size=32, learning_rate=1e-3, bfloat16=False, seed=options.seed
    )
    torch.manual_seed(settings.seed)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return denoising_loss(model, generator, settings.batch_size)

    model = build_photo_unet()
    train(model, loss, settings, options.work)
    provenance: dict[str, object] = {
        "model": "diffusers.UNet2DModel, preconditioned as in EDM",
        "data": "crops of scikit-learn's two sample images (CC BY 2.0, by danielbuechele and vultilion on Flickr) "
        "at half size, 24x24 pixels, the left 80 % of the width",
        "objective": "denoising, weights and noise levels of EDM (arXiv 2206.00364, table 1)",
        "script": "training/train_photo_unet.py",
        "settings": attrs.asdict(settings),
    }
    publish(model, options.out, provenance)
    shutil.copy(options.work / "loss.csv", options.out.with_suffix(".loss.csv"))


if __name__ == "__main__":
    main()
