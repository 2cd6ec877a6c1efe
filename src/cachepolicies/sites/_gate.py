"""Gates: for the length of one call of the denoiser, a module's calls in this thread go through a function of ours.

A gate sits around ``module(...)``, not inside ``forward``: hooks, offloading and LoRA stay as they are, and a block
that was compiled by itself stays one graph. It works by exchanging the module's class for a subclass with another
``__call__``, as ``torch.nn.utils.parametrize`` and FSDP do, and back when the last call is over; between calls nothing
about the model differs. A gate belongs to the thread that put it there: whoever calls the module in another thread,
cached or not, passes it as if it were not there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from cachepolicies.base.errors import RunError

_HANDLERS = "_cachepolicies_gates"
"""Attribute of a gated module: thread to handler."""

_exchanging = threading.Lock()

_exchange_class = object.__setattr__
"""Sets ``__class__`` as `nn.Module`, which looks for parameters first, would in the end."""

_here = threading.local()
"""Its ``thread`` is the identity of this thread, once it has placed a gate. ``torch.compile`` can read it, and guards
on it; a call of ``threading.get_ident`` would break the graph, in every block."""


class Handler(Protocol):
    """What a gate does with a call of its module."""

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve ``module(*args, **kwargs)``; ``proceed`` runs the module itself."""
        ...


class _Gated:
    """First in the bases of a gated class.

    Attributes:
        ungated: the module's own class.
    """

    ungated: Any


_MADE = "_cachepolicies_gated"
"""Attribute of a class: its gated subclass, which lives as long as it does."""


def _gated(kind: Any) -> type[nn.Module]:
    """Return the gated subclass; the same one every time, which a compiled graph's guards rely on."""
    made = kind.__dict__.get(_MADE)
    if made is None:
        made = _made_from(kind)
        setattr(kind, _MADE, made)
    return made  # type: ignore[no-any-return]


def _made_from(kind: Any) -> type[nn.Module]:
    own_call = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Without a handler of this thread the call is somebody else's; or it comes after the gate was taken off, as
        # when gradient checkpointing runs the module again in the backward pass.
        handlers = self.__dict__.get(_HANDLERS)
        handler: Handler | None = None if handlers is None else handlers.get(getattr(_here, "thread", None))
        if handler is None:
            return own_call(self, *args, **kwargs)
        return handler(super(made, self).__call__, args, kwargs)

    members = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "ungated": kind, "__call__": call}
    made: Any = type(kind.__name__, (_Gated, kind), members)
    return made  # type: ignore[no-any-return]


class Gates:
    """Gates around modules for the calls of this thread, from when they are placed until `close`."""

    __slots__ = ("_placed", "_thread")

    def __init__(self) -> None:
        self._thread = _here.thread = threading.get_ident()
        self._placed: list[nn.Module] = []

    def place(self, handlers: Mapping[nn.Module, Handler]) -> None:
        """Put a gate around every module.

        Raises:
            RunError: a module has a gate of this thread already: two sites work on one model at the same time.
        """
        thread, placed = self._thread, self._placed
        with _exchanging:
            for module, handler in handlers.items():  # many, at every call
                own: Any = module.__dict__.get(_HANDLERS)
                if own is None:
                    module.__dict__[_HANDLERS] = {thread: handler}
                    kind: Any = type(module)
                    _exchange_class(module, "__class__", kind.__dict__.get(_MADE) or _gated(kind))
                elif thread in own:
                    raise RunError(
                        f"a {type(module).__name__} of this model is inside another cached call; use one cache on a "
                        "model at a time"
                    )
                else:
                    own[thread] = handler
                placed.append(module)

    def close(self) -> None:
        """Take them off."""
        thread = self._thread
        with _exchanging:
            for module in self._placed:
                own: Any = module.__dict__[_HANDLERS]
                del own[thread]
                if not own:
                    gated: Any = type(module)
                    _exchange_class(module, "__class__", gated.ungated)
                    del module.__dict__[_HANDLERS]
            self._placed = []


@contextmanager
def gates(handlers: Mapping[nn.Module, Handler]) -> Iterator[None]:
    """Put a gate around every module for the length of the context; raises as `Gates.place`."""
    placed = Gates()
    try:
        placed.place(handlers)
        yield
    finally:
        placed.close()
