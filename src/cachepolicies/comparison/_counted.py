"""A denoiser that counts its own evaluations, independently of the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from cachepolicies.adapters.base import submodule
from cachepolicies.adapters.find import adapter_of, network_of
from cachepolicies.profiles.match import model_class_name


class CountedDenoiser:
    """Passes every call on and counts it: at the denoiser itself, or at the module inside that a site cuts at.

    Attributes:
        model: the denoiser.
        model_class_name: what a profile knows the denoiser by.
        network: the module that it calls, if it is known.
        calls: how often it was evaluated.
        rows: evaluations: rows summed over the calls.
    """

    def __init__(self, model: Callable[..., Any], site: str = "output") -> None:
        self.model = model
        self.model_class_name = model_class_name(model)
        self.network = network_of(model)
        self._inside = None if site == "output" or self.network is None else _evaluated_at(self.network, site)
        self._rows_now = 0
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser."""
        self._rows_now = x.shape[0]
        if self._inside is None:
            self._count()
        return self.model(x, t, *args, **kwargs)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count inside the network, where a site is inside, for the length of the context."""
        if self._inside is None:
            yield
            return
        handle = self._inside.register_forward_pre_hook(lambda *_: self._count())
        try:
            yield
        finally:
            handle.remove()

    @property
    def config(self) -> Any:
        """The configuration of the denoiser; a profile compares it."""
        return getattr(self.model, "config", None)

    def reset(self) -> None:
        """Count from zero."""
        self.calls = self.rows = 0

    def _count(self) -> None:
        self.calls += 1
        self.rows += self._rows_now


def _evaluated_at(network: nn.Module, site: str) -> nn.Module:
    """Return a module that runs exactly when the site is evaluated."""
    if site != "blocks":
        return submodule(network, site, "site")
    for blocks in adapter_of(network).stack:
        found = submodule(network, blocks.path, "site")
        if not isinstance(found, nn.ModuleList):
            return found
        if len(found):
            return found[0]
    raise LookupError(f"the block lists of {type(network).__name__} are empty")
