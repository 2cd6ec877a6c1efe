"""Whether modules are still where they were: LoRA wraps some after set-up, others are exchanged for compiled ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from cachepolicies.base.foreign import inside_compiled


class Whereabouts:
    """Where in a network some modules were."""

    def __init__(self, network: nn.Module, paths: Iterable[str]) -> None:
        """Note every module on the way to each path; compiled ones are looked through."""
        found: dict[tuple[int, str], tuple[dict[str, Any], str, nn.Module]] = {}
        for path in paths:
            module = network
            for name in path.split("."):
                parent = (inside_compiled(module) or module)._modules
                child = parent.get(name)
                if child is None:
                    break
                found[id(parent), name] = (parent, name, child)
                module = child
        self._found = tuple(found.values())

    def unchanged(self) -> bool:
        """Return whether each is there still; asked at every call."""
        for parent, name, module in self._found:  # noqa: SIM110  # a generator would cost as much as the question
            if parent.get(name) is not module:
                return False
        return True
