"""Spec strings: a name with settings in one string, such as ``"sencache:epsilon=0.1,max_reuse=3"``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import shown

NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
"""What a registered name looks like: it starts with a letter and contains no ``:``, ``,``, ``=`` or space."""

# A word must not start like a number, or "0.1x" and "-.5.1" would pass as text.
_BARE_WORD = re.compile(r"""[^\s'"()\[\]{},=+\-.0-9][^\s'"()\[\]{},=]*|\.{0,2}/[^\s'"()\[\]{},=]*""")
# A value that is itself a spec, as far as it needs no comma: "optimal:nfe=22".
_NESTED = re.compile(NAME_PATTERN.pattern + r"\s*:\s*[A-Za-z_]\w*\s*=.+", re.DOTALL)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``"name:key=value,key=value"`` into the name and its settings.

    A value is a Python literal (number, ``True``, ``False``, ``None``, quoted string, tuple, list, dict); a bare word
    or a path is a string, and so is another spec with one setting, ``"sencache:epsilon=optimal:nfe=22"``; one with
    several is quoted, ``"sencache:epsilon='optimal:nfe=22,weights=uniform',max_reuse=5"``. Commas inside brackets and
    quotes belong to the value. Nothing is evaluated.

    Args:
        spec: the text; a name alone is a spec without settings.

    Returns:
        The name and the settings in the order written.

    Raises:
        SettingsError: the text has another form; the message shows it and the expected one.
    """
    if not isinstance(spec, str):
        raise SettingsError(f"a spec is a string like 'name:key=value,key=value', got {type(spec).__name__}")
    return _parse(spec, nests=True)


def _parse(spec: str, nests: bool) -> tuple[str, dict[str, Any]]:
    name, colon, rest = spec.partition(":")
    name = name.strip()
    if NAME_PATTERN.fullmatch(name) is None:
        _refuse_spec(spec, f"{name!r} is not a name")
    settings: dict[str, Any] = {}
    if not colon:
        return name, settings
    for part in _split(spec, rest):
        key, equals, text = part.partition("=")
        key = key.strip()
        if not part.strip():
            _refuse_spec(spec, "a setting is empty")
        if not equals:
            _refuse_spec(spec, f"{part.strip()!r} has no '='")
        if not key.isidentifier():
            _refuse_spec(spec, f"{key!r} is not the name of a setting")
        if key in settings:
            _refuse_spec(spec, f"{key!r} is given twice")
        settings[key] = _value(spec, key, text.strip(), nests)
    return name, settings


def has_settings(text: str) -> bool:
    """Return whether a text begins as a spec with settings does, ``name:key=...``; a path does not."""
    return _NESTED.fullmatch(text.strip()) is not None


def format_spec(name: str, settings: Mapping[str, Any]) -> str:
    """Write a name and settings as a spec that `parse_spec` reads back to the same values.

    Raises:
        SettingsError: the name or a key cannot stand in a spec, or a value is no Python literal (a function, a NaN).
    """
    text = name + (":" if settings else "") + ",".join(f"{key}={_literal(v)}" for key, v in settings.items())
    parsed = parse_spec(text)
    if parsed != (name, dict(settings)):
        raise SettingsError(f"cannot be written as a spec: {text!r} reads back as {parsed!r}")
    return text


def _literal(value: Any) -> str:
    # The repr of an infinity is a bare word, which would come back as a string; 1e999 is its literal.
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def _value(spec: str, key: str, text: str, nests: bool) -> Any:
    if not text:
        _refuse_spec(spec, f"{key!r} has no value")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        if nests and has_settings(text):
            _check_nested(spec, key, text)
            return text
        if _BARE_WORD.fullmatch(text) is None:
            _refuse_spec(
                spec,
                f"the value of {shown(key)}, {shown(text, 200)}, is neither a Python literal nor a bare word",
                error,
            )
    return text


def _check_nested(spec: str, key: str, text: str) -> None:
    try:
        _parse(text, nests=False)
    except SettingsError as error:
        _refuse_spec(spec, f"the value of {key!r} is a spec itself, and malformed: {error}", error)


def _split(spec: str, text: str) -> list[str]:
    """Split at the commas outside brackets and quotes."""
    parts: list[str] = []
    expected: list[str] = []
    quote = ""
    start = 0
    skip = False
    for position, character in enumerate(text):
        if skip:
            skip = False
        elif quote:
            if character == "\\":
                skip = True
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif character in _BRACKETS:
            expected.append(_BRACKETS[character])
        elif character in ")]}":
            if not expected or expected.pop() != character:
                _refuse_spec(spec, f"{character!r} closes nothing")
        elif character == "," and not expected:
            parts.append(text[start:position])
            start = position + 1
    if quote:
        _refuse_spec(spec, f"the quote {quote} is not closed")
    if expected:
        _refuse_spec(spec, f"{expected[-1]!r} is missing")
    return [*parts, text[start:]]


def _refuse_spec(spec: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise SettingsError(
        f"malformed spec {shown(spec, 300)}: {reason}; expected 'name' or 'name:key=value,key=value', "
        "for example 'sencache:epsilon=0.1,max_reuse=3' (text with commas or spaces, or a spec with several settings, "
        "in quotes)"
    ) from cause
