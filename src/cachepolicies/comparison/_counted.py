"""A denoiser that counts its own evaluations, independently of the trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cachepolicies.profiles.match import model_class_name


class CountedDenoiser:
    """Passes every call on and counts it.

    Attributes:
        model: the denoiser.
        model_class_name: what a profile knows the denoiser by.
        calls: how often it was called.
        rows: evaluations: rows summed over the calls.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.model_class_name = model_class_name(model)
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser."""
        self.calls += 1
        self.rows += x.shape[0]
        return self.model(x, t, *args, **kwargs)

    @property
    def config(self) -> Any:
        """The configuration of the denoiser; a profile compares it."""
        return getattr(self.model, "config", None)

    def reset(self) -> None:
        """Count from zero."""
        self.calls = self.rows = 0
