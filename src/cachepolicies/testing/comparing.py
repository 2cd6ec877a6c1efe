"""Whether two objects are the same all the way down, and a copy to compare with later."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

_DEEPEST = 40


def difference_between(one: Any, other: Any, where: str = "") -> str | None:
    """Return where two objects differ first, ``None`` where they are the same.

    Tensors and arrays are compared bit for bit, with nan equal to nan; attrs objects by all their fields, whether or
    not these take part in ``==``; functions by their code and what they close over.

    Args:
        one: an object.
        other: another.
        where: the path to them, for the answer.
    """
    return _difference(one, other, where, {}, 0)


def _difference(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    if one is other or (id(one), id(other)) in seen or depth > _DEEPEST:
        return None
    seen[id(one), id(other)] = None
    if type(one) is not type(other):
        return f"{where or 'it'} is a {type(one).__name__} and a {type(other).__name__}"
    for kind, compare in _COMPARED:
        if isinstance(one, kind):
            return compare(one, other, where, seen, depth + 1)
    if isinstance(one, weakref.ref):  # what is not kept alive is no part of it
        return None if type(one()) is type(other()) else f"{where or 'it'} leads to {one()!r} and {other()!r}"
    parts = _parts(one)
    if parts is not None:
        return _mappings(parts, _parts(other) or {}, where, seen, depth + 1)
    same = bool(one == other) or (one != one and other != other)
    return None if same else f"{where or 'it'} is {one!r} and {other!r}"


def _tensors(one: Tensor, other: Tensor, where: str, *_: Any) -> str | None:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return f"{where or 'the tensor'} is {tuple(one.shape)} {one.dtype} and {tuple(other.shape)} {other.dtype}"
    if one.device.type == "meta":
        return None
    a, b = one.detach(), other.detach()
    differs = ~((a == b) | ((a != a) & (b != b)))
    if not bool(differs.any()):
        return None
    place = tuple(differs.nonzero()[0].tolist()) if a.ndim else ()
    return f"{where or 'the tensor'} differs at {place}: {a[place].item()!r} and {b[place].item()!r}"


def _arrays(one: Any, other: Any, where: str, *_: Any) -> str | None:
    return None if np.array_equal(one, other, equal_nan=one.dtype.kind in "fc") else f"{where or 'the array'} differs"


def _mappings(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    if list(one) != list(other):
        return f"{where or 'it'} has {list(one)} and {list(other)}"
    return _first(_difference(one[key], other[key], f"{where}.{key}", seen, depth) for key in one)


def _sequences(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    if len(one) != len(other):
        return f"{where or 'it'} has {len(one)} and {len(other)} entries"
    pairs = enumerate(zip(one, other, strict=True))
    return _first(_difference(a, b, f"{where}[{i}]", seen, depth) for i, (a, b) in pairs)


def _functions(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    if one.__code__ is not other.__code__:
        return f"{where or 'it'} is {one.__qualname__} and {other.__qualname__}"
    cells = [[_cell(cell) for cell in function.__closure__ or ()] for function in (one, other)]
    return _difference((cells[0], one.__defaults__), (cells[1], other.__defaults__), where, seen, depth)


def _methods(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    return _difference((one.__self__, one.__func__), (other.__self__, other.__func__), where, seen, depth)


def _partials(one: Any, other: Any, where: str, seen: dict[tuple[int, int], None], depth: int) -> str | None:
    parts = [(each.func, each.args, each.keywords) for each in (one, other)]
    return _difference(parts[0], parts[1], where, seen, depth)


def _plain_equality(one: Any, other: Any, where: str, *_: Any) -> str | None:
    return None if one == other else f"{where or 'it'} is {one!r} and {other!r}"


_COMPARED: Sequence[tuple[Any, Callable[..., str | None]]] = (
    (Tensor, _tensors),
    (np.ndarray, _arrays),
    ((str, bytes, type, Set), _plain_equality),
    (Mapping, _mappings),
    (Sequence, _sequences),
    (types.FunctionType, _functions),
    (types.MethodType, _methods),
    (partial, _partials),
    (torch.Generator, lambda one, other, where, *_: _tensors(one.get_state(), other.get_state(), where)),
)


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Return what an object consists of, ``None`` where ``==`` has to say."""
    if attrs.has(type(value)):
        # A field without a place in == is still a part, except for what is only remembered to be quick.
        return {f.name: getattr(value, f.name) for f in attrs.fields(type(value)) if f.init or f.eq is not False}
    kind: Any = type(value)
    return vars(value) if kind.__eq__ is object.__eq__ and hasattr(value, "__dict__") else None


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _first(found: Any) -> str | None:
    return next((one for one in found if one is not None), None)


def copied(value: Any) -> Any:
    """Return a deep copy, or the object itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever a stranger's object raises: then it cannot be compared with itself before
        return value
