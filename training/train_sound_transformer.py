"""Train the reference sound transformer on melodies: ``python training/train_sound_transformer.py``."""

from __future__ import annotations

import shutil

import attrs
import torch
from torch import Tensor, nn

from cachepolicies.reference import melodies
from cachepolicies.reference.sound_transformer import TWIN_WEIGHTS, WEIGHTS, SoundTransformer
from loop import Settings, publish, train
from options import parse_options


def flow_matching_loss(model: nn.Module, generator: torch.Generator, batch_size: int) -> Tensor:
    """Mean squared error of the velocity on fresh melodies; half of the levels uniform, half logit-normal."""
    drawn = melodies.draw_melodies(batch_size, generator)
    data = melodies.encode(melodies.play(drawn, generator))
    noise = torch.randn(data.shape, generator=generator)
    uniform = torch.rand(batch_size, generator=generator)
    logit_normal = torch.randn(batch_size, generator=generator).sigmoid()
    sigma = torch.where(torch.arange(batch_size) % 2 == 0, uniform, logit_normal)
    level = sigma[:, None, None]
    velocity = model((1 - level) * data + level * noise, 1000 * sigma, drawn.pitch)
    loss: Tensor = (velocity.float() - (noise - data)).square().mean()
    return loss


def main() -> None:
    """Train, then write the weights, their provenance and the loss curve."""
    options = parse_options(__doc__, weights=WEIGHTS, twin=TWIN_WEIGHTS, iterations=[3000])
    settings = Settings(iterations=options.iterations[-1], batch_size=32, bfloat16=False, seed=options.seed)
    torch.manual_seed(settings.seed)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return flow_matching_loss(model, generator, settings.batch_size)

    model = SoundTransformer()
    train(model, loss, settings, options.work)
    provenance: dict[str, object] = {
        "model": "cachepolicies.reference.sound_transformer.SoundTransformer",
        "data": "melodies of four plucked notes, synthesised by cachepolicies.reference.melodies",
        "objective": "flow matching, velocity; half of the noise levels uniform, half logit-normal",
        "script": "training/train_sound_transformer.py",
        "settings": attrs.asdict(settings),
    }
    publish(model, options.out, provenance)
    shutil.copy(options.work / "loss.csv", options.out.with_suffix(".loss.csv"))


if __name__ == "__main__":
    main()
