"""What a denoiser returns: find the tensor in it, and put another tensor in its place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import attrs
from torch import Tensor

from cachepolicies.base.errors import InputError

_EXPECTED = "a denoiser returns a tensor, a tuple or list with a tensor first, or an object with a tensor `.sample`"


def tensor_of(output: object) -> Tensor:
    """Return the prediction in a denoiser's output.

    Args:
        output: a tensor, a tuple or list with a tensor first, or an object with a tensor ``.sample``.

    Returns:
        The tensor itself, not a copy.

    Raises:
        InputError: there is no tensor where one is expected.
    """
    if isinstance(output, Tensor):
        return output
    found = output[0] if isinstance(output, (tuple, list)) and output else getattr(output, "sample", None)
    if isinstance(found, Tensor):
        return found
    raise InputError(f"the denoiser returned {_describe(output)}; {_EXPECTED}")


@attrs.frozen
class OutputForm:
    """The shape of a denoiser's return value without its prediction: what is needed to return the same type again.

    Attributes:
        template: ``None`` for a bare tensor, the remaining elements of a tuple or list, or the object whose
            ``.sample`` was taken out.
        container: type of the tuple or list, ``None`` otherwise.
    """

    template: Any = None
    container: type[Any] | None = None

    @property
    def extra_tensors(self) -> bool:
        """Whether the output holds tensors beside the prediction, which cannot be merged row by row."""
        return _holds_tensor(self.template)

    def fill(self, prediction: Tensor) -> Any:
        """Return an output of the original type with ``prediction`` in its place."""
        if self.container is not None:
            items = (prediction, *self.template)
            make = getattr(self.container, "_make", self.container)  # a namedtuple takes its items one by one
            return cast(Any, make)(items)
        if self.template is None:
            return prediction
        return _with_sample(self.template, prediction)


def form_of(output: object) -> OutputForm:
    """Return the `OutputForm` of an output that `tensor_of` accepts; it holds no reference to the prediction."""
    if isinstance(output, Tensor):
        return _BARE
    if isinstance(output, (tuple, list)):
        return OutputForm(template=tuple(output[1:]), container=type(output))
    return OutputForm(template=_with_sample(output, None))


_BARE = OutputForm()


def _with_sample(output: Any, sample: Tensor | None) -> Any:
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return dataclasses.replace(output, **cast(Any, {"sample": sample}))
    if attrs.has(type(output)):
        return attrs.evolve(output, sample=sample)
    twin = copy.copy(output)
    twin.sample = sample
    return twin


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_holds_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_tensor(item) for item in value)
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    fields = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    return any(isinstance(item, (Tensor, Mapping, list, tuple)) and _holds_tensor(item) for item in fields)


def _describe(output: object) -> str:
    if isinstance(output, (tuple, list)):
        first = f" whose first element is {type(output[0]).__name__}" if output else " that is empty"
        return f"a {type(output).__name__}{first}"
    return f"a {type(output).__name__} without a tensor `.sample`"
