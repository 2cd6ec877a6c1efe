"""A module's call by name: blocks are called by position or by keyword, depending on the model and its mode."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from cachepolicies.base.foreign import inside_compiled


class ArgumentNames:
    """The parameter names of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        inner: Any = module
        while (compiled := inside_compiled(inner)) is not None:
            inner = compiled
        # of the class: hooks and offloading replace the instance's forward by one that takes anything
        parameters = list(inspect.signature(type(inner).forward).parameters.values())[1:]
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.positional = tuple(p.name for p in parameters if p.kind in kinds)
        self.all = tuple(p.name for p in parameters)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name."""
        return {**dict(zip(self.positional, args, strict=False)), **kwargs}
