"""Train the reference video DiT on moving digits: ``python training/train_video_dit.py``."""

from __future__ import annotations

import shutil

import attrs
import torch
from torch import Tensor, nn

from cachepolicies.reference import moving_digits
from cachepolicies.reference.digits import load_digits
from cachepolicies.reference.video_dit import TWIN_WEIGHTS, WEIGHTS, build_video_dit
from loop import Settings, publish, train
from options import parse_options

CAPTION_DROP = 0.1
STAGES = [4500, 7000, 8600]
"""Iterations at which the cosine schedule of the learning rate ends; each stage resumes from the one before."""


def noise_levels(n: int, generator: torch.Generator) -> Tensor:
    """Half of the levels uniform, half logit-normal."""
    uniform = torch.rand(n, generator=generator)
    logit_normal = torch.randn(n, generator=generator).sigmoid()
    return torch.where(torch.arange(n) % 2 == 0, uniform, logit_normal)


def flow_matching_loss(model: nn.Module, generator: torch.Generator, batch_size: int) -> Tensor:
    """Mean squared error of the velocity on a fresh batch of moving digits."""
    captions = moving_digits.draw_captions(batch_size, generator)
    data = moving_digits.encode(moving_digits.render(captions, load_digits("train"), generator))
    noise = torch.randn(data.shape, generator=generator)
    sigma = noise_levels(batch_size, generator)
    level = sigma[:, None, None, None, None]
    keep = (torch.rand(batch_size, generator=generator) >= CAPTION_DROP).float()[:, None, None]
    (velocity,) = model((1 - level) * data + level * noise, 1000 * sigma, captions.embed() * keep, return_dict=False)
    loss: Tensor = (velocity.float() - (noise - data)).square().mean()
    return loss


def main() -> None:
    """Train, then write the weights, their provenance and the loss curve."""
    options = parse_options(__doc__, weights=WEIGHTS, twin=TWIN_WEIGHTS, iterations=STAGES)
    settings = Settings(iterations=options.iterations[-1], seed=options.seed)
    torch.manual_seed(settings.seed)
    model = build_video_dit()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return flow_matching_loss(model, generator, settings.batch_size)

    for end in options.iterations:
        train(model, loss, attrs.evolve(settings, iterations=end), options.work)
    provenance: dict[str, object] = {
        "model": "diffusers.WanTransformer3DModel",
        "data": "moving digits from scikit-learn load_digits (UCI), training split",
        "objective": "flow matching, velocity; half of the noise levels uniform, half logit-normal",
        "script": "training/train_video_dit.py",
        "stages": list(options.iterations),
        "settings": attrs.asdict(settings),
    }
    publish(model, options.out, provenance)
    shutil.copy(options.work / "loss.csv", options.out.with_suffix(".loss.csv"))


if __name__ == "__main__":
    main()
