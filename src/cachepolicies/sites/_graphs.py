"""Compiled models: what the cache does is left to Python, what the model does is compiled as without a cache."""

from __future__ import annotations

import functools
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from cachepolicies.base.foreign import frame_evaluation
from cachepolicies.base.host import outside_graphs

P = ParamSpec("P")
R = TypeVar("R")

Resume = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes a part of the model, and returns it such that ``torch.compile`` sees it again."""


_around = threading.local()

_set_eval_frame = frame_evaluation()


def compiling_around() -> bool:
    """Return whether this thread is inside a call that ``torch.compile`` left to Python: what it runs is compiled."""
    return getattr(_around, "depth", 0) > 0


def apart(function: Callable[Concatenate[Resume, P], R]) -> Callable[P, R]:
    """Return the function such that ``torch.compile`` sees nothing of what it does, except what it calls by `Resume`.

    ``torch.compiler.disable`` has one half of this: recursive, it keeps what the function calls of the model from being
    compiled as well; not recursive, it compiles the functions of the cache one by one.
    """
    set_eval_frame = frame_evaluation()

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        compiler = set_eval_frame(None)
        if compiler is None:  # nothing is being compiled around this call
            return function(_as_it_is, *args, **kwargs)

        def resume(part: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(part)
            def seen(*args: Any, **kwargs: Any) -> Any:
                set_eval_frame(compiler)
                try:
                    return part(*args, **kwargs)
                finally:
                    set_eval_frame(None)

            return seen

        _around.depth = getattr(_around, "depth", 0) + 1
        try:
            return function(resume, *args, **kwargs)
        finally:
            _around.depth -= 1
            set_eval_frame(compiler)

    return outside_graphs(call)


class ServedApart(ABC):
    """A gate whose own work ``torch.compile`` leaves to Python."""

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The compiler takes the first way always, and cuts its graph there. A plain model's gates, of which there are
        # many, are served at once.
        if torch.compiler.is_dynamo_compiling():
            return _apart(self, proceed, args, kwargs)
        compiler = _set_eval_frame(None)
        if compiler is None:
            return self.serve(_as_it_is, proceed, args, kwargs)
        _set_eval_frame(compiler)
        return _apart(self, proceed, args, kwargs)

    @abstractmethod
    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve ``module(*args, **kwargs)``; ``resume(proceed)`` runs the module itself."""


class GateOfSite(ServedApart):
    """A gate that belongs to a site: it does not keep the site alive, which keeps it."""

    def __init__(self, site: object) -> None:
        self._site = weakref.ref(site)

    @property
    def site(self) -> Any:
        """The site."""
        return self._site()


def _served(
    resume: Resume, gate: ServedApart, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return gate.serve(resume, proceed, args, kwargs)


def _as_it_is(part: Callable[..., Any]) -> Callable[..., Any]:
    return part


_apart = apart(_served)
