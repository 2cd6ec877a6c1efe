"""Factories that are imported when they are first wanted."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from cachepolicies.base.errors import PluginError
from cachepolicies.base.settings import shown


@frozen
class LazyFactory:
    """A factory that is imported when it is first wanted; made by `cachepolicies.hookspecs.lazy`.

    Attributes:
        target: ``"module:attribute"``.
    """

    target: str = field()

    @target.validator
    def _check_target(self, attribute: object, value: object) -> None:
        if not isinstance(value, str) or len(parts := value.split(":")) != 2 or not all(parts):
            raise PluginError(f"a lazy factory is given as 'module:attribute', got {value!r}")

    def resolve(self) -> Callable[..., Any]:
        """Import and return the factory itself.

        Raises:
            PluginError: the module cannot be imported, or has no such attribute, or it is not callable.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"cannot import the factory {self.target!r}: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise PluginError(f"the factory {self.target!r} is not callable: {shown(found)}")
        factory: Callable[..., Any] = found
        return factory

    def __call__(self, **settings: Any) -> Any:
        """Import the factory and call it."""
        return self.resolve()(**settings)


def imported(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return the factory itself, imported where it is lazy.

    Raises:
        PluginError: see `LazyFactory.resolve`.
    """
    return factory.resolve() if isinstance(factory, LazyFactory) else factory
