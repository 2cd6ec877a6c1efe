"""A denoiser that counts its own evaluations, independently of the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from cachepolicies.adapters.find import network_of
from cachepolicies.base.models import model_class_name
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.engine.call import WHOLE


def modules_inside(site: ResolvedSite | None) -> int:
    """Return how many modules a site has beside the call itself, which is a place of its own then; 0 for others."""
    if site is None or WHOLE not in site.places or WHOLE in site.modules:
        return 0
    return len(site.modules)


class CountedDenoiser:
    """Passes every call on and counts it: at the denoiser itself, or at the modules inside that a site cuts at.

    Attributes:
        model: the denoiser.
        model_class_name: what a profile knows the denoiser by.
        network: the module that it calls, if it is known.
        evaluations: how often it, or one of the site's modules, was evaluated.
        rows: rows summed over the evaluations.
        calls: in how many of its calls something was evaluated.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.model_class_name = model_class_name(model)
        self.network = network_of(model)
        self._inside = False
        self._rows_now = 0
        self._counted_now = False
        self.evaluations = self.rows = self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser."""
        self._rows_now, self._counted_now = x.shape[0], False
        if not self._inside:
            self._count()
        return self.model(x, t, *args, **kwargs)

    @contextmanager
    def counting(self, site: ResolvedSite | None) -> Iterator[None]:
        """Count at the modules of a site, if it has some, for the length of the context."""
        modules = {} if site is None else site.modules
        with ExitStack() as stack:
            for module in modules.values():
                stack.callback(module.register_forward_pre_hook(lambda *_: self._count()).remove)
            self._inside = bool(modules) and not modules_inside(site)
            try:
                yield
            finally:
                self._inside = False

    @property
    def config(self) -> Any:
        """The configuration of the denoiser; a profile compares it."""
        return getattr(self.model, "config", None)

    def reset(self) -> None:
        """Count from zero."""
        self.evaluations = self.rows = self.calls = 0

    def _count(self) -> None:
        self.evaluations += 1
        self.rows += self._rows_now
        self.calls += not self._counted_now
        self._counted_now = True
