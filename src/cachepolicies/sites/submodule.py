"""Any one submodule as the site: what it returns is remembered, and handed out again in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cachepolicies._errors import InputError, RunError
from cachepolicies.adapters.base import submodule
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import Resume, apart
from cachepolicies.sites._inside import InsideSite
from cachepolicies.sites._rows import copies_of, pack, replace_tensors, tensors_in, unpack


class SubmoduleSite(InsideSite):
    """Cuts at the output of one module, given by its path, as ``named_modules`` spells it."""

    def __init__(self, network: nn.Module, path: str) -> None:
        """Find the module.

        Raises:
            SettingsError: the network has no module at this path.
        """
        super().__init__(network, path)
        self._module = submodule(network, path, "site")
        self._gates: dict[nn.Module, Handler] = {self._module: _Around(self)}
        self._form: Any = None
        self._shapes: list[torch.Size] = []

    @property
    def signals(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gate of the module."""
        return self._gates

    def reset(self) -> None:
        """Forget the form of the module's output."""
        self._form, self._shapes = None, []

    def capture(self, output: Any) -> None:
        """Take what the module returned."""
        tensors = tensors_in(output)
        if not tensors:
            raise InputError(f"module {self.name!r} returned {type(output).__name__} without a tensor to remember")
        what = f"the output of {self.name!r}"
        self._form = replace_tensors(output, [tensor.new_empty(0) for tensor in tensors])
        self._shapes = [
            torch.Size((copies_of(tensor, self.rows, what), *tensor.shape[1:])) for tensor in tensors
        ]  # with the number of copies in the place of the batch
        self.leave(pack(tensors, self.rows, what))

    def replaced(self) -> Any:
        """Return what the module would have returned."""
        if not self._shapes:
            raise RunError(f"site {self.name!r}: nothing of it has been evaluated yet")
        packed = self.replacement
        tensors = unpack(packed, self._like(packed), self.rows)
        self.leave(None)
        return replace_tensors(self._form, tensors)

    def _like(self, packed: Tensor) -> list[Tensor]:
        return [
            torch.empty((copies * self.rows, *rest), dtype=packed.dtype, device="meta")
            for copies, *rest in self._shapes
        ]


class _Around:
    """The gate of the module."""

    def __init__(self, site: SubmoduleSite) -> None:
        self.site = site
        self._apart = apart(self._serve)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._apart(proceed, args, kwargs)

    def _serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.site.arrive({})
        if self.site.replacing:
            return self.site.replaced()
        output = resume(proceed)(*args, **kwargs)
        self.site.capture(output)
        return output
