"""Tensors of a site as one tensor a sample, and outputs put together from parts of a batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.base.host import index_on


def copies_of(tensor: Tensor, rows: int, what: str) -> int:
    """Return how often each of the caller's rows stands in a tensor: 2 in a wrapper that doubles the batch.

    Raises:
        InputError: its first dimension is no multiple of the rows.
    """
    if tensor.ndim < 1 or tensor.shape[0] % rows or not tensor.shape[0]:
        raise InputError(
            f"{what} has shape {tuple(tensor.shape)} in a call with {rows} rows; its first dimension has to be the "
            "batch, once or several times over. Cut this model at another site, or write an adapter for it"
        )
    return tensor.shape[0] // rows


def by_sample(tensor: Tensor, rows: int, what: str, together: int = 1) -> Tensor:
    """Return ``(k * rows, n, ...)`` as ``(rows, k * n, ...)``; unchanged where k is 1.

    A batch that holds every row k times over holds them as k blocks, ``cat([x, x])``. What was one row's lies one after
    the other along dimension 1, and the dimensions behind it stay.

    Args:
        tensor: to put in order.
        rows: of the caller's batch.
        what: for messages.
        together: how many rows of one sample stand next to each other, as the frames of a video do in ``(B * F, ...)``.

    Raises:
        InputError: the first dimension is no multiple of the rows, or of ``together`` times the rows.
    """
    copies = copies_of(tensor, rows, what)
    if copies == 1:
        return tensor
    _check_together(copies, together, what)
    shape = (rows, copies * math.prod(tensor.shape[1:2]), *tensor.shape[2:])
    return tensor.reshape(copies // together, rows, together, -1).transpose(0, 1).reshape(shape)


def _check_together(copies: int, together: int, what: str) -> None:
    if copies % together:
        raise InputError(
            f"{what} has {copies} rows a sample where the adapter of this model says {together} times some; correct "
            "`rows_a_sample`"
        )


def pack(streams: Sequence[Tensor], rows: int, what: str, together: int = 1) -> Tensor:
    """Return what flows at a site as one tensor ``(rows, ...)``.

    Args:
        streams: ``(k * rows, ...)`` each, of one dtype.
        rows: of the caller's batch.
        what: for messages.
        together: see `by_sample`.

    Returns:
        ``(rows, n)`` of several streams; a single one as `by_sample` returns it, itself where k is 1.

    Raises:
        InputError: see `copies_of`; or the streams differ in dtype.
    """
    parts = [by_sample(stream, rows, what, together) for stream in streams]
    if len(parts) == 1:
        return parts[0]
    if len({part.dtype for part in parts}) > 1:
        raise InputError(f"{what} has streams of {', '.join(str(p.dtype) for p in parts)}; they must be of one dtype")
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1)


def unpack(packed: Tensor, like: Sequence[Tensor], rows: int, together: int = 1) -> list[Tensor]:
    """Undo `pack`, given tensors of the shapes that the streams have.

    Raises:
        InputError: the streams have another number of elements now.
    """
    if len(like) == 1 and packed.shape == like[0].shape:
        return [packed]
    flat = packed.reshape(rows, -1)
    sizes = [model.numel() // rows for model in like]
    if sum(sizes) != flat.shape[1]:
        raise InputError(
            f"{flat.shape[1]} remembered elements a sample do not fit streams of shapes "
            f"{', '.join(str(tuple(m.shape)) for m in like)}; the model changed its inner shapes within a run"
        )
    streams, start = [], 0
    for model, size in zip(like, sizes, strict=True):
        part, start = flat[:, start : start + size], start + size
        blocks = model.shape[0] // rows // together
        streams.append(part.reshape(rows, blocks, together, -1).transpose(0, 1).reshape(model.shape))
    return streams


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for _, item in _items(value) for tensor in tensors_in(item)]


def replace_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the same nest with its tensors replaced, in order."""
    waiting = iter(tensors)

    def replaced(item: Any) -> Any:
        if isinstance(item, Tensor):
            return next(waiting)
        return _rebuilt(item, {key: replaced(part) for key, part in _items(item)})

    return replaced(value)


def merge_rows(parts: Sequence[tuple[Sequence[int], Any]], batch: int) -> Any:
    """Put outputs for parts of a batch together.

    Args:
        parts: rows of the batch, and the output for them: a nest of tensors ``(n, ...)`` and, below the top, lists with
            one tensor a row.
        batch: rows of the batch; every one is in exactly one part.

    Returns:
        The output for the whole batch, of the type of the first part.

    Raises:
        InputError: a tensor has neither n rows nor one, or the parts do not fit each other.
    """
    return _merged([(list(rows), output) for rows, output in parts], batch, top=True)


def _merged(parts: list[tuple[list[int], Any]], batch: int, *, top: bool) -> Any:
    first = parts[0][1]
    if isinstance(first, Tensor):
        return _merged_tensors(parts, batch)
    if not top and isinstance(first, list) and all(len(output) == len(rows) for rows, output in parts):
        merged: list[Any] = [None] * batch
        for rows, output in parts:
            for row, item in zip(rows, output, strict=True):
                merged[row] = item
        return merged
    return _rebuilt(
        first,
        {key: _merged([(r, dict(_items(o))[key]) for r, o in parts], batch, top=False) for key, _ in _items(first)},
    )


def _merged_tensors(parts: list[tuple[list[int], Any]], batch: int) -> Tensor:
    first: Tensor = parts[0][1]
    merged = first.new_empty((batch, *first.shape[1:]))
    for rows, tensor in parts:
        if tensor.shape[1:] != first.shape[1:] or tensor.dtype != first.dtype or tensor.shape[0] != len(rows):
            raise InputError(
                f"the model returned {tuple(tensor.shape)} {tensor.dtype} for {len(rows)} of {batch} rows and "
                f"{tuple(first.shape)} {first.dtype} for others; use per_sample=False for this model"
            )
        merged = merged.index_copy(0, index_on(rows, merged.device), tensor)
    return merged


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return []


def _rebuilt(value: Any, items: dict[Any, Any]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # diffusers' outputs are dataclasses and mappings at once; unset fields are left out of the mapping
        return dataclasses.replace(value, **cast(Any, {str(key): item for key, item in items.items()}))
    if isinstance(value, Mapping):
        return cast(Any, type(value))(items)
    if isinstance(value, tuple):
        return getattr(type(value), "_make", type(value))(items.values())
    if isinstance(value, list):
        return list(items.values())
    return value
