"""Gates: for the length of one call of the denoiser, a module's calls go through a function of ours.

A gate sits around ``module(...)``, not inside ``forward``: hooks, offloading and LoRA stay as they are, and a block
that was compiled by itself stays one graph. It works by exchanging the module's class for a subclass with another
``__call__``, as ``torch.nn.utils.parametrize`` and FSDP do, and back when the call is over; between calls nothing about
the model differs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from cachepolicies._errors import RunError

_HANDLER = "_cachepolicies_gate"


class Handler(Protocol):
    """What a gate does with a call of its module."""

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve ``module(*args, **kwargs)``; ``proceed`` runs the module itself."""
        ...


class _Gated:
    """First in the bases of a gated class."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, _Gated):
            # the call is over, and the gate off: gradient checkpointing runs the module again in the backward pass
            return self(*args, **kwargs)
        handler: Handler = self.__dict__[_HANDLER]
        return handler(super().__call__, args, kwargs)  # type: ignore[misc]  # the module's class comes next


@functools.cache
def _gated(kind: Any) -> type[nn.Module]:
    """Return the gated subclass; the same one every time, which a compiled graph's guards rely on."""
    return type(kind.__name__, (_Gated, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


@contextmanager
def gates(handlers: Mapping[nn.Module, Handler]) -> Iterator[None]:
    """Put a gate around every module for the length of the context.

    Raises:
        RunError: a module has a gate already: two sites work on one model at the same time.
    """
    placed: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module, handler in handlers.items():
            kind: Any = type(module)
            if issubclass(kind, _Gated):
                raise RunError(
                    f"a {kind.__name__} of this model is inside another cached call; use one cache on a model at a time"
                )
            module.__dict__[_HANDLER] = handler
            object.__setattr__(module, "__class__", _gated(kind))
            placed.append((module, kind))
        yield
    finally:
        for module, kind in placed:
            object.__setattr__(module, "__class__", kind)
            del module.__dict__[_HANDLER]
