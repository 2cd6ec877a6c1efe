"""Telling apart calls by what they are conditioned on, without keeping it alive and without needless reads."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor


def weakly(value: Any) -> Any:
    """Return the value with weak references in the place of its tensors."""
    if isinstance(value, Tensor):
        return weakref.ref(value)
    if isinstance(value, dict):
        return {key: weakly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(weakly(item) for item in value)
    return value


def differs(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Return whether conditioning differs: first by identity, then by value; ``a`` may hold weak references."""
    if len(a) != len(b):
        return True
    return any(_item_differs(p, q) for p, q in zip(a, b, strict=True))


def same_objects(known: tuple[Any, ...], conditioning: tuple[Any, ...]) -> bool:
    """Return whether conditioning consists of the very same tensors and equal plain values; reads no tensor.

    Args:
        known: as `weakly` keeps it.
        conditioning: of a call.
    """
    if len(known) != len(conditioning):
        return False
    return all(_same_object(p, q) for p, q in zip(known, conditioning, strict=True))


def _same_object(p: Any, q: Any) -> bool:
    p = _alive(p)
    if p is q:
        return True
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return False
    if isinstance(p, dict) and isinstance(q, dict):
        return p.keys() == q.keys() and all(_same_object(p[key], q[key]) for key in p)
    if isinstance(p, (list, tuple)) and isinstance(q, (list, tuple)):
        return same_objects(tuple(p), tuple(q))
    return type(p) is type(q) and _equal(p, q)


_GONE = object()
"""Stands for a tensor that nobody holds any more: it is no other object, and not ``None``."""


def _alive(item: Any) -> Any:
    if not isinstance(item, weakref.ref):
        return item
    tensor = item()
    return _GONE if tensor is None else tensor


def _equal(p: Any, q: Any) -> bool:
    return np.array_equal(p, q) if isinstance(p, np.ndarray) else bool(p == q)


def _item_differs(p: Any, q: Any) -> bool:
    p = _alive(p)
    if p is q:
        return False
    if isinstance(p, Tensor) and isinstance(q, Tensor):
        alike = (p.shape, p.dtype, p.device) == (q.shape, q.dtype, q.device)
        return not alike or not torch.equal(p, q)
    if isinstance(p, Tensor) or isinstance(q, Tensor):
        return True
    if isinstance(p, dict) and isinstance(q, dict):
        return p.keys() != q.keys() or any(_item_differs(p[key], q[key]) for key in p)
    if isinstance(p, (list, tuple)) and isinstance(q, (list, tuple)):
        return differs(tuple(p), tuple(q))
    return type(p) is not type(q) or not _equal(p, q)
