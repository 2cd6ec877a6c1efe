"""What a denoiser returns: find the tensor in it, and put another tensor in its place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor

from cachepolicies.base.errors import InputError

_EXPECTED = (
    "a denoiser returns a tensor, a tuple or list with a tensor first, or an object with a tensor `.sample`; in one of "
    "these two places, a list with one tensor a sample will do"
)


def tensor_of(output: object) -> Tensor:
    """Return the prediction in a denoiser's output.

    Args:
        output: a tensor; a tuple or list with a tensor first; an object with a tensor ``.sample``, or a dataclass with
            one field, a tensor. In the place of the last three, a list of tensors of one shape, one a sample, will do.

    Returns:
        The tensor itself, not a copy; of a list, its tensors stacked.

    Raises:
        InputError: there is no tensor where one is expected, or the samples of a list differ in shape.
    """
    if isinstance(output, Tensor):
        return output
    found = _prediction_in(output)
    if isinstance(found, Tensor):
        return found
    if _is_listed(found):
        shapes = sorted({tuple(sample.shape) for sample in found})
        if len(shapes) > 1:
            raise InputError(
                f"the denoiser returned a list of samples of different shapes, {shapes}; sample those of one shape "
                "together"
            )
        return torch.stack(list(found))
    raise InputError(f"the denoiser returned {_describe(output)}; {_EXPECTED}")


@attrs.frozen
class OutputForm:
    """The shape of a denoiser's return value without its prediction: what is needed to return the same type again.

    Attributes:
        template: ``None`` for a bare tensor, the remaining elements of a tuple or list, or the object whose
            ``.sample`` was taken out.
        container: type of the tuple or list, ``None`` otherwise.
        listed: whether the prediction is a list with one tensor a sample.
        name: of the attribute of an object that holds the prediction.
    """

    template: Any = None
    container: type[Any] | None = None
    listed: bool = False
    name: str = "sample"

    @property
    def extra_tensors(self) -> bool:
        """Whether the output holds tensors beside the prediction, which cannot be merged row by row."""
        return _holds_tensor(self.template)

    def fill(self, prediction: Tensor) -> Any:
        """Return an output of the original type with ``prediction`` in its place."""
        if self.listed:
            return self._filled(list(prediction.unbind(0)))
        return self._filled(prediction)

    def _filled(self, prediction: Any) -> Any:
        if self.container is not None:
            items = (prediction, *self.template)
            make = getattr(self.container, "_make", self.container)  # a namedtuple takes its items one by one
            return cast(Any, make)(items)
        if self.template is None:
            return prediction
        return _with(self.template, self.name, prediction)


def form_of(output: object) -> OutputForm:
    """Return the `OutputForm` of an output that `tensor_of` accepts; it holds no reference to the prediction."""
    if isinstance(output, Tensor):
        return _BARE
    listed = _is_listed(_prediction_in(output))
    if isinstance(output, (tuple, list)):
        return OutputForm(template=tuple(output[1:]), container=type(output), listed=listed)
    name = _name_in(output)
    return OutputForm(template=_with(output, name, None), listed=listed, name=name)


_BARE = OutputForm()


def _prediction_in(output: object) -> Any:
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return getattr(output, _name_in(output), None)


def _name_in(output: object) -> str:
    """Return the attribute that holds the prediction: ``sample``, or the only one of a dataclass."""
    if dataclasses.is_dataclass(output) and not hasattr(output, "sample"):
        names = [field.name for field in dataclasses.fields(output)]
        if len(names) == 1:
            return names[0]
    return "sample"


def _is_listed(found: Any) -> bool:
    return isinstance(found, (tuple, list)) and bool(found) and all(isinstance(sample, Tensor) for sample in found)


def _with(output: Any, name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return dataclasses.replace(output, **cast(Any, {name: value}))
    if attrs.has(type(output)):
        return attrs.evolve(output, **{name: value})
    twin = copy.copy(output)
    setattr(twin, name, value)
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
