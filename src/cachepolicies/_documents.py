"""JSON documents of this library, profiles and plans: read strictly, written so that a person can read them."""

from __future__ import annotations

import json
import re
from typing import Any

import cattrs


def strict_converter(error: type[Exception]) -> cattrs.Converter:
    """Return a converter that converts nothing: cattrs by itself would read "8" and 8.7 as the integer 8.

    Args:
        error: what is raised for a number or a text of another type; unknown keys are refused by cattrs itself.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, accepted in ((int, (int,)), (float, (int, float)), (str, (str,))):
        converter.register_structure_hook(kind, _strict(kind, accepted, error))
    return converter


def problem(error: BaseException, _type: type | None) -> str:
    """Say what is wrong with a document, for `cattrs.transform_error`."""
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown key {sorted(error.extra_fields)[0]!r}"
    return str(error)


def dump(document: dict[str, Any]) -> str:
    """Return the document as JSON, rows of numbers on one line each: readable, and a diff stays small."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    # no string holds a raw line break
    return re.sub(r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]", lambda row: "[" + re.sub(r",\s+", ", ", row[1]) + "]", text) + "\n"


def _strict(kind: type, accepted: tuple[type, ...], refusal: type[Exception]) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise refusal(f"{value!r} is a {type(value).__name__}, expected {kind.__name__}")
        return kind(value)

    return structure
