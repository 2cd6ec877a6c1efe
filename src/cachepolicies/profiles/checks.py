"""Checks and conversions of single fields of a profile; the errors name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from cachepolicies.base.errors import ProfileError
from cachepolicies.base.settings import shown
from cachepolicies.profiles.format import RECALIBRATE, Array

LARGEST = 1e100
"""Of a measured value: products of a few of them have to be finite."""

_LONGEST_NAME = 200


def read_only(values: Any, dtype: type[np.generic] | None = None) -> Array:
    """Return a copy of an array that cannot be written to."""
    array = np.array(values, dtype=dtype)  # a copy: a profile cannot be changed from outside
    array.flags.writeable = False
    return array


def plain_json(what: str, values: Any) -> dict[str, Any]:
    """Return the mapping as it will be read back, so that a profile equals its own file.

    Raises:
        ProfileError: it is no mapping, or holds something that JSON cannot.
    """
    if not isinstance(values, Mapping):
        raise ProfileError(f"field {what!r} is {values!r}, not a mapping; {RECALIBRATE}")
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(dict(values), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ProfileError(
            f"field {what!r} holds something JSON cannot ({error}): {values!r}; "
            "give numbers, strings, booleans, None, lists and dicts of them"
        ) from error


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the field ``settings`` as `plain_json` does."""
    return plain_json("settings", values)


def check_name(what: str, text: str) -> None:
    """Check that a name can be shown and looked for.

    Raises:
        ProfileError: it is longer than 200 characters, or has some that cannot be printed.
    """
    if len(text) > _LONGEST_NAME or not text.isprintable():
        raise ProfileError(
            f"field {what!r} is {shown(text)}: a name has at most {_LONGEST_NAME} characters, all of which can be "
            f"printed; {RECALIBRATE}"
        )


def check_noise_levels(what: str, values: tuple[float, ...]) -> None:
    """Check that there are numbers, finite and strictly decreasing.

    Raises:
        ProfileError: they are not; names the place.
    """
    if not values:
        raise ProfileError(f"{what} is empty; {RECALIBRATE}")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ProfileError(f"{what}[{index}] is {value}, not a finite number; {RECALIBRATE}")
        if index and value >= values[index - 1]:
            raise ProfileError(
                f"{what} must be strictly decreasing, but {what}[{index}] = {value} follows {values[index - 1]}; "
                f"sort it from the first noise level to the last, or {RECALIBRATE}"
            )


def check_finite(what: str, array: Array) -> None:
    """Check that an array holds finite numbers.

    Raises:
        ProfileError: it does not; names the place.
    """
    if array.dtype.kind not in "fiu":
        raise ProfileError(f"{what} has dtype {array.dtype}, not numbers; {RECALIBRATE}")
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ProfileError(f"{what} has the non-finite value {array[index]} at {list(index)}; {RECALIBRATE}")
    if array.dtype.kind == "f" and array.size and float(abs(array).max()) > LARGEST:
        raise ProfileError(
            f"{what} has the value {abs(array).max():g}; beyond {LARGEST:g} nothing can be computed; {RECALIBRATE}"
        )


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Check that a field has one of a few values.

    Raises:
        ProfileError: it has another.
    """
    if value not in known:
        raise ProfileError(f"field {what!r} is {value!r}, expected one of {', '.join(known)}; {RECALIBRATE}")
