"""Draw samples of the trained models, to look at and listen to: ``python training/pictures.py``.

Writes ``docs/assets/reference/NAME.png`` for every model and twin, uncached samples of fixed seeds, and one melody of
each sound transformer as a .wav file.
"""

from __future__ import annotations

import wave
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from cachepolicies.comparison import Workload
from cachepolicies.reference import melodies, moving_digits, photographs, workloads
from cachepolicies.schedulers.sample import sample

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first

FOLDER = Path("docs/assets/reference")
FIRST_SEED = 60_000
SCALE = 4
"""Pixels of the picture a side of a pixel of a sample."""


@torch.no_grad()
def samples(workload: Workload, count: int) -> Tensor:
    """Return uncached samples of fixed seeds."""
    inputs = workload.draw(range(FIRST_SEED, FIRST_SEED + count))
    return sample(workload.denoiser, workload.scheduler, inputs.noise, *inputs.args, num_steps=workload.num_steps)


def sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """Write pictures ``(B, H, W)`` or ``(B, H, W, 3)`` in [0, 1] side by side."""
    rows = [torch.cat(list(pictures[start : start + columns]), 1) for start in range(0, len(pictures), columns)]
    image = torch.cat(rows, 0).numpy().repeat(SCALE, 0).repeat(SCALE, 1)
    plt.imsave(path, image, cmap="gray", vmin=0.0, vmax=1.0)


def sound(latents: Tensor, stem: Path) -> None:
    """Write the waves of four melodies as a picture, and the first as a sound file."""
    waves = melodies.decode(latents)
    figure, axes = plt.subplots(len(waves), 1, figsize=(8, 1.2 * len(waves)), sharex=True, sharey=True)
    time = np.arange(melodies.LENGTH) / melodies.RATE
    for axis, one in zip(axes, waves, strict=True):
        axis.plot(time, one, linewidth=0.5)
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(stem.with_suffix(".png"), dpi=80, metadata={"Software": None})
    plt.close(figure)
    with wave.open(str(stem.with_suffix(".wav")), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(melodies.RATE)
        file.writeframes((waves[0].clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes())


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for make in (workloads.video_dit, workloads.video_dit_twin):
        workload: Workload = make()
        frames = moving_digits.decode(samples(workload, 6))
        sheet(frames.flatten(0, 1), frames.shape[1], FOLDER / f"{workload.name}.png")
    for make in (workloads.image_dit, workloads.image_dit_twin):
        workload = make()
        sheet(workload.pictures(samples(workload, 32))[:, 0], 16, FOLDER / f"{workload.name}.png")
    for make in (workloads.photo_unet, workloads.photo_unet_twin):
        workload = make()
        sheet(photographs.pixels(samples(workload, 32)).permute(0, 2, 3, 1), 16, FOLDER / f"{workload.name}.png")
    for make in (workloads.sound_transformer, workloads.sound_transformer_twin):
        workload = make()
        sound(samples(workload, 4), FOLDER / workload.name)


if __name__ == "__main__":
    main()
