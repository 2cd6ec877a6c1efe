"""Measure the trained models' samples and add the figures to their provenance: ``python training/evaluate.py``.

Guided samples (guidance 2, 50 steps) of single digits are shown to the classifier that was trained on real digits.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from rich.progress import track

from cachepolicies.reference import classifier, image_dit, moving_digits, video_dit
from cachepolicies.reference.workloads import image_dit as image_workload
from cachepolicies.reference.workloads import image_inputs
from cachepolicies.reference.workloads import video_dit as video_workload
from cachepolicies.schedulers.sample import sample

FIRST_SEED = 50_000
BATCH = 32


@torch.no_grad()
def video_accuracy(seeds: range) -> float:
    """Return the share of single-digit videos whose middle frame shows the digit asked for."""
    workload = video_workload()
    right = 0
    for start in track(range(0, len(seeds), BATCH), description="videos"):
        generator = torch.Generator().manual_seed(seeds[start])
        rows = min(BATCH, len(seeds) - start)
        captions = moving_digits.draw_captions(rows, generator, single=True)
        noise = torch.randn(rows, *moving_digits.LATENT_SHAPE, generator=generator)
        latents = sample(workload.denoiser, workload.scheduler, noise, captions.embed(), num_steps=workload.num_steps)
        middle = moving_digits.decode(latents)[:, moving_digits.FRAMES // 2]
        right += int((classifier.classify(middle) == captions.first).sum())
    return right / len(seeds)


@torch.no_grad()
def image_accuracy(seeds: range) -> float:
    """Return the share of images that show the digit asked for."""
    workload = image_workload()
    inputs = image_inputs(seeds)
    latents = sample(workload.denoiser, workload.scheduler, inputs.noise, *inputs.args, num_steps=workload.num_steps)
    return workload.score("accuracy", latents, inputs).mean().item()


def note(weights: Path, accuracy: float, samples: int) -> None:
    """Write an accuracy and its standard error into the provenance beside the weights."""
    path = weights.with_suffix(".json")
    provenance = json.loads(path.read_text())
    provenance["evaluation"] = {
        "accuracy of guided single-digit samples": round(accuracy, 4),
        "standard error": round(math.sqrt(accuracy * (1 - accuracy) / samples), 4),
        "samples": samples,
        "guidance": 2.0,
        "steps": 50,
        "script": "training/evaluate.py",
    }
    path.write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{path.stem}: {accuracy:.1%} of {samples} samples are recognised")


def main() -> None:
    """Evaluate both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=256)
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    for count, accuracy, weights in (
        (arguments.images, image_accuracy, image_dit.WEIGHTS),
        (arguments.videos, video_accuracy, video_dit.WEIGHTS),
    ):
        if count:
            note(weights, accuracy(range(FIRST_SEED, FIRST_SEED + count)), count)


if __name__ == "__main__":
    main()
