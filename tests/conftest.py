"""Shared settings, strategies and fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from cachepolicies import CalibrationSamples, Profile, calibrate
from cachepolicies.profiles.schema import Curve, ModelInfo, SchedulerInfo
from cachepolicies.reference.gaussian_mixture import FlowMatching, GaussianMixtureDenoiser
from cachepolicies.schedulers.flow_euler import FlowEuler

# Most models here are tiny: a second thread gains nothing on them, and waits for the first where the machine is shared.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

SHAPE = (2, 3, 4)


class Counted:
    """A denoiser that counts its calls and the rows of each, independently of any trace."""

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser = denoiser
        self.rows: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.rows)

    def __call__(self, x: Tensor, t: Tensor | float, *args: object, **kwargs: object) -> Tensor:
        self.rows.append(x.shape[0])
        return self.denoiser(x, t, *args, **kwargs)


def linear_profile(
    timesteps: Sequence[float], alpha_x: float = 0.5, alpha_t: float = 1e-3, class_name: str = "Counted"
) -> Profile:
    """A profile with constant sensitivities, for tests in which their values do not matter."""

    def curve(value: float) -> Curve:
        return Curve(tuple(timesteps), np.full((len(timesteps), 2), value))

    return Profile(
        name="constant",
        model=ModelInfo(class_name=class_name),
        prediction_type="velocity",
        latent_shape=SHAPE,
        scheduler=SchedulerInfo(name="flow-euler", family="flow"),
        timesteps=tuple(timesteps),
        samples=2,
        curves={"alpha_x": curve(alpha_x), "alpha_t": curve(alpha_t)},
    )


def mixture(prediction: str = "velocity", seed: int = 0) -> GaussianMixtureDenoiser:
    """A small mixture of Gaussians under flow matching with t from 1000 to 0."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixtureDenoiser(
        means=torch.randn(3, *SHAPE, generator=generator),
        variances=torch.tensor([0.1, 0.2, 0.4]),
        weights=torch.tensor([0.5, 0.3, 0.2]),
        schedule=FlowMatching(1000.0),
        prediction=prediction,
    )


@pytest.fixture(scope="session")
def mixture_profile() -> Profile:
    """What calibration measures for `mixture`."""
    samples = CalibrationSamples.from_seeds(range(8), SHAPE)
    return calibrate(mixture(), FlowEuler(), samples, num_steps=50, progress=False, model_class="Counted")
