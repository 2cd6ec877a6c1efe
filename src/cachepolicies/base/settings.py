"""Checks of settings: attrs validators shared by the policies, and building an object from checked settings."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import attrs
import numpy as np
from attrs.validators import and_, ge, gt, instance_of, le, matches_re, not_

from cachepolicies.base.errors import CachePoliciesError, SettingsError, nearest_match_hint

T = TypeVar("T")

Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], Any]
"""An attrs validator."""

_NO_SUBJECT = "settings"


def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python number it holds, anything else unchanged; an attrs converter.

    Settings are written to JSON, which knows Python's numbers only.
    """
    return value.item() if isinstance(value, np.generic) else value


def shown(value: object, limit: int = 80) -> str:
    """Return ``repr(value)`` on one line of at most ``limit`` characters, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def refuse(instance: object, attribute: attrs.Attribute[Any], value: object, expectation: str) -> NoReturn:
    """Raise the error of a setting that is not what it must be.

    Args:
        instance: the settings object; its class is named in the message.
        attribute: the attrs attribute of the setting.
        value: what was given.
        expectation: completes the sentence "epsilon must be ...".

    Raises:
        SettingsError: always; it names class, setting, expectation, value and the value's type.
    """
    name = attribute.alias or attribute.name
    given = f"{shown(value)} ({type(value).__name__})"
    raise SettingsError(f"{type(instance).__name__}: {name} must be {expectation}, got {given}")


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, Python's or NumPy's; ``3.0`` and ``True`` are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _expecting(expectation: str, *checks: Validator) -> Validator:
    """Return a validator that raises `SettingsError` where one of attrs' own refuses."""
    check = and_(*checks)

    def validate(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        with contextlib.suppress(TypeError, ValueError):
            check(instance, attribute, value)
            return
        refuse(instance, attribute, value, expectation)

    return validate


_INTEGRAL, _REAL = cast("tuple[type[Any], type[Any]]", (Integral, Real))  # mypy refuses abstract classes here
# bool is an Integral: True as a tolerance is a slip, not a number
_INTEGER = (instance_of(_INTEGRAL), not_(instance_of(bool)))
_NUMBER = (instance_of(_REAL), not_(instance_of(bool)), ge(-sys.float_info.max), le(sys.float_info.max))

finite = _expecting("a finite number", *_NUMBER)
"""Accepts a finite real number, Python's or NumPy's; NaN, infinities, booleans and text raise `SettingsError`."""

non_negative = _expecting("a finite number >= 0", *_NUMBER, ge(0))
"""Accepts a finite number >= 0, see `finite`."""

positive = _expecting("a finite number > 0", *_NUMBER, gt(0))
"""Accepts a finite number > 0, see `finite`."""

at_least_one = _expecting("a finite number >= 1", *_NUMBER, ge(1))
"""Accepts a finite number >= 1, see `finite`."""

fraction = _expecting("a fraction from 0 to 1", *_NUMBER, ge(0), le(1))
"""Accepts a number from 0 to 1, both included, see `finite`."""

non_negative_int = _expecting("an integer >= 0", *_INTEGER, ge(0))
"""Accepts an integer >= 0, Python's or NumPy's; ``3.0`` and ``True`` are not integers."""

positive_int = _expecting("an integer >= 1", *_INTEGER, ge(1))
"""Accepts an integer >= 1, see `non_negative_int`."""

boolean = _expecting("True or False", instance_of((bool, np.bool_)))
"""Accepts ``True`` or ``False``; 0, 1 and text are refused with `SettingsError`."""


a_name = _expecting("a name", instance_of(str), matches_re(r"(?s).*\S.*"))
"""Accepts a text that is not empty."""


def one_of(*choices: str) -> Validator:
    """Return a validator that accepts these strings only.

    The validator raises `SettingsError` for anything else, with the choices and the nearest one.
    """

    def validate(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            hint = nearest_match_hint(value, choices) if isinstance(value, str) else f"known: {', '.join(choices)}"
            refuse(instance, attribute, value, f"one of a few words ({hint})")

    return validate


def build(factory: Callable[..., T], settings: Mapping[str, Any], *, subject: str = _NO_SUBJECT) -> T:
    """Call ``factory(**settings)`` after comparing the names with the factory's signature.

    Args:
        factory: usually a frozen attrs class.
        settings: what to pass, by name.
        subject: what is being built, for the messages: ``"policy 'sencache'"``.

    Returns:
        What the factory returned.

    Raises:
        SettingsError: a setting is unknown (the message lists the valid ones), a required one is missing, or the
            factory refused a value with `TypeError` or `ValueError`.
    """
    _check_names(factory, settings, subject)
    try:
        return factory(**settings)
    except CachePoliciesError:
        raise
    except (TypeError, ValueError) as error:
        # A third party's factory need not use the validators above.
        given = ", ".join(f"{name}={shown(value)}" for name, value in settings.items())
        raise SettingsError(
            f"{subject}: cannot be built with {given or 'no settings'}: {type(error).__name__}: {error}"
        ) from error


def _check_names(target: Callable[..., object], settings: Mapping[str, Any], subject: str) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # some callables written in C have no signature; the call itself then decides
        return
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    valid = {parameter.name: parameter for parameter in parameters if parameter.kind in by_name}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [name for name in settings if name not in valid]
    if unknown and not takes_any:
        raise SettingsError(f"{subject}: unknown setting {unknown[0]!r}: {nearest_match_hint(unknown[0], valid)}")
    missing = [
        name
        for name, parameter in valid.items()
        if parameter.default is inspect.Parameter.empty and name not in settings
    ]
    if missing:
        raise SettingsError(f"{subject}: missing setting {', '.join(missing)}; give it as {missing[0]}=...")
