"""Classifier-free guidance as a denoiser: one call on a row is two rows of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.models import model_class_name
from cachepolicies.base.outputs import tensor_of


class GuidedDenoiser:
    """Evaluate a network with and without its condition in one doubled batch, and extrapolate.

    ``f = null + scale * (cond - null)`` (Ho and Salimans, arXiv 2207.12598, in the form with scale 1 for no guidance).

    Attributes:
        network: a module called as ``network(x, t, **{argument: condition}, return_dict=False)``.
        scale: the guidance scale.
        argument: name of the network's conditioning argument.
        null: ``null(n)`` returns the condition that means *none*, for n samples.
        model_class_name: class name of the network, which is what a profile knows the denoiser by.
    """

    def __init__(self, network: nn.Module, scale: float, *, argument: str, null: Callable[[int], Tensor]) -> None:
        """Wrap a network.

        Raises:
            SettingsError: the scale is not a finite number.
        """
        if (
            isinstance(scale, bool)
            or not isinstance(scale, (int, float))
            or scale != scale
            or abs(scale) == float("inf")
        ):
            raise SettingsError(f"guidance must be a finite number, got {scale!r}")
        self.network = network
        self.scale = float(scale)
        self.argument = argument
        self.null = null
        self.model_class_name = model_class_name(network)

    @property
    def config(self) -> Any:
        """The network's configuration, or None."""
        return getattr(self.network, "config", None)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the network's weights, which a calibration hashes."""
        return self.network.state_dict()

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Evaluate.

        Args:
            x: ``(B, ...)`` latent.
            t: ``(B,)`` noise level in the network's units.
            condition: ``(B, ...)`` what the network takes as ``argument``.

        Returns:
            ``(B, ...)`` the guided prediction.
        """
        null = self.null(x.shape[0]).to(condition)
        output = self.network(
            torch.cat([x, x]),
            torch.cat([t, t]),
            **{self.argument: torch.cat([null, condition])},
            return_dict=False,
        )
        without, given = tensor_of(output).chunk(2)
        return without + self.scale * (given - without)
