"""Converters of attrs fields: copies of what was given, so that a record cannot be changed from outside.

They take values of any type: mypy does not follow a generic converter of a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def floats(values: Iterable[float]) -> tuple[float, ...]:
    """Return the numbers as Python floats."""
    return tuple(float(value) for value in values)


def integers(values: Iterable[int]) -> tuple[int, ...]:
    """Return the numbers as Python integers."""
    return tuple(int(value) for value in values)


def as_tuple(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return the values in a tuple."""
    return tuple(values)


def as_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs in a new dict."""
    return dict(values)
