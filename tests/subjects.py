"""The denoisers that the properties are tested on: the analytic one and the two trained transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies import CalibrationSamples, Profile, calibrate, load_profile
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.reference import image_dit, moving_digits, video_dit
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, Counted, mixture


@frozen(eq=False)
class Subject:
    """A denoiser with what is needed to call it.

    Attributes:
        name: for the test's id.
        model: ``f(x, t, **conditioning)``.
        shape: of one sample.
        scheduler: the schedule it was made for.
        profile: what calibration measured on it.
        conditioning: ``conditioning(n, generator) -> kwargs`` with one row a sample.
        output_scale: typical RMS of the output, to choose tolerances by.
    """

    name: str
    model: Callable[..., Any]
    shape: tuple[int, ...]
    scheduler: Scheduler
    profile: Profile
    conditioning: Callable[[int, torch.Generator], dict[str, Tensor]]

    def inputs(self, rows: int, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Noise and conditioning; row i does not depend on how many rows there are."""
        noise, conditions = [], []
        for row in range(rows):
            generator = torch.Generator().manual_seed(1000 * seed + row)
            noise.append(torch.randn(1, *self.shape, generator=generator))
            conditions.append(self.conditioning(1, generator))
        merged = {key: torch.cat([c[key] for c in conditions]) for key in conditions[0]}
        return torch.cat(noise), merged


def _captions(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"encoder_hidden_states": moving_digits.draw_captions(n, generator).embed()}


def _labels(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"class_labels": torch.randint(10, (n,), generator=generator)}


@functools.cache
def subject(name: str) -> Subject:
    """Return one of ``"mixture"``, ``"video-dit"`` and ``"image-dit"``."""
    scheduler: Scheduler
    shape: tuple[int, ...]
    if name == "mixture":
        scheduler = FlowEuler()
        samples = CalibrationSamples.from_seeds(range(8), SHAPE)
        profile = calibrate(mixture(), scheduler, samples, progress=False, model_class="Counted")
        return Subject(name, Counted(mixture()), SHAPE, scheduler, profile, lambda n, g: {})
    if name == "video-dit":
        model: Any = video_dit.load_video_dit()
        shape, conditioning, scheduler = moving_digits.LATENT_SHAPE, _captions, FlowEuler()
    else:
        model = image_dit.load_image_dit()
        shape, conditioning, scheduler = image_dit.LATENT_SHAPE, _labels, DDIM()
    return Subject(name, model, shape, scheduler, load_profile(name), conditioning)


NAMES = ("mixture", "video-dit", "image-dit")
