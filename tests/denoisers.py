"""The small denoisers of most tests: a mixture of Gaussians in closed form, and a wrapper that counts calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.reference.gaussian_mixture import FlowMatching, GaussianMixtureDenoiser

SHAPE = (2, 3, 4)
"""Of one sample."""


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


def mixture(prediction: PredictionType = "velocity", seed: int = 0) -> GaussianMixtureDenoiser:
    """A small mixture of Gaussians under flow matching with t from 1000 to 0."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixtureDenoiser(
        means=torch.randn(3, *SHAPE, generator=generator),
        variances=torch.tensor([0.1, 0.2, 0.4]),
        weights=torch.tensor([0.5, 0.3, 0.2]),
        schedule=FlowMatching(1000.0),
        prediction=prediction,
    )
