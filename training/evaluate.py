"""Measure the trained models' samples and add the figures to their provenance: ``python training/evaluate.py``.

Guided samples (guidance 2, 50 steps) of single digits are shown to the classifier that was trained on real digits. The
notes of the melodies are listened to. Nothing judges the crops of photographs but who looks at them: `pictures.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from rich.progress import track

from cachepolicies.comparison import Workload
from cachepolicies.reference import classifier, image_dit, moving_digits, sound_transformer, video_dit, workloads
from cachepolicies.schedulers.sample import sample

FIRST_SEED = 50_000
BATCH = 32


@torch.no_grad()
def video_accuracy(workload: Workload, seeds: range) -> float:
    """Return the share of single-digit videos whose middle frame shows the digit asked for."""
    right = 0
    for start in track(range(0, len(seeds), BATCH), description=workload.name):
        generator = torch.Generator().manual_seed(seeds[start])
        rows = min(BATCH, len(seeds) - start)
        captions = moving_digits.draw_captions(rows, generator, single=True)
        noise = torch.randn(rows, *moving_digits.LATENT_SHAPE, generator=generator)
        latents = sample(workload.denoiser, workload.scheduler, noise, captions.embed(), num_steps=workload.num_steps)
        middle = moving_digits.decode(latents)[:, moving_digits.FRAMES // 2]
        right += int((classifier.classify(middle) == captions.first).sum())
    return right / len(seeds)


@torch.no_grad()
def scored(workload: Workload, score: str, seeds: range) -> float:
    """Return the mean of one of the workload's scores."""
    inputs = workload.draw(seeds)
    latents = sample(workload.denoiser, workload.scheduler, inputs.noise, *inputs.args, num_steps=workload.num_steps)
    return workload.scores[score](latents, inputs).mean().item()


def note(weights: Path, what: str, share: float, samples: int, guidance: float | None) -> None:
    """Write a share and its standard error into the provenance beside the weights."""
    path = weights.with_suffix(".json")
    provenance = json.loads(path.read_text())
    provenance["evaluation"] = {
        what: round(share, 4),
        "standard error": round(math.sqrt(share * (1 - share) / samples), 4),
        "samples": samples,
        "guidance": guidance,
        "steps": 50,
        "script": "training/evaluate.py",
    }
    path.write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{path.stem}: {what}: {share:.1%} of {samples}")


def main() -> None:
    """Evaluate the models and their twins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--only", nargs="*", help="names of models, such as image-dit-twin; all by default")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.samples)
    digits, notes = "accuracy of guided single-digit samples", "notes heard as asked for"
    for make, weights in (
        (workloads.image_dit, image_dit.WEIGHTS),
        (workloads.image_dit_twin, image_dit.TWIN_WEIGHTS),
        (workloads.sound_transformer, sound_transformer.WEIGHTS),
        (workloads.sound_transformer_twin, sound_transformer.TWIN_WEIGHTS),
        (workloads.video_dit, video_dit.WEIGHTS),
        (workloads.video_dit_twin, video_dit.TWIN_WEIGHTS),
    ):
        if arguments.only and weights.stem not in arguments.only:
            continue
        workload: Workload = make()
        if "pitch" in workload.scores:
            note(weights, notes, scored(workload, "pitch", seeds), len(seeds), workload.guidance)
        elif weights.stem.startswith("image"):
            note(weights, digits, scored(workload, "accuracy", seeds), len(seeds), workload.guidance)
        else:
            note(weights, digits, video_accuracy(workload, seeds), len(seeds), workload.guidance)


if __name__ == "__main__":
    main()
