"""Checks of settings: attrs validators shared by the policies, and building an object from checked settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn, TypeVar, cast

import attrs
import numpy as np

from cachepolicies._errors import CachePoliciesError, SettingsError, nearest_match_hint

T = TypeVar("T")

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


def _is_finite_real(value: object) -> bool:
    # bool is an Integral: True as a tolerance is a slip, not a number.
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int or Fraction beyond the range of float
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def finite(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a finite real number, Python's or NumPy's; refuse NaN, infinities, booleans and text.

    Raises:
        SettingsError: anything else.
    """
    if not _is_finite_real(value):
        refuse(instance, attribute, value, "a finite number")


def non_negative(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a finite number >= 0.

    Raises:
        SettingsError: anything else.
    """
    if not _is_finite_real(value) or value < 0:
        refuse(instance, attribute, value, "a finite number >= 0")


def positive(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a finite number > 0.

    Raises:
        SettingsError: anything else.
    """
    if not _is_finite_real(value) or value <= 0:
        refuse(instance, attribute, value, "a finite number > 0")


def fraction(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a number from 0 to 1, both included.

    Raises:
        SettingsError: anything else.
    """
    if not _is_finite_real(value) or not 0 <= value <= 1:
        refuse(instance, attribute, value, "a fraction from 0 to 1")


def non_negative_int(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept an integer >= 0, Python's or NumPy's; ``3.0`` and ``True`` are not integers.

    Raises:
        SettingsError: anything else.
    """
    if not _is_integer(value) or value < 0:
        refuse(instance, attribute, value, "an integer >= 0")


def positive_int(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept an integer >= 1, Python's or NumPy's; ``3.0`` and ``True`` are not integers.

    Raises:
        SettingsError: anything else.
    """
    if not _is_integer(value) or value < 1:
        refuse(instance, attribute, value, "an integer >= 1")


def boolean(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept ``True`` or ``False``; 0, 1 and text are refused.

    Raises:
        SettingsError: anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        refuse(instance, attribute, value, "True or False")


def one_of(*choices: str) -> Callable[[object, attrs.Attribute[Any], Any], None]:
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
        factory: usually a frozen attrs class. A `cachepolicies.hookspecs.lazy` one is imported first.
        settings: what to pass, by name.
        subject: what is being built, for the messages: ``"policy 'sencache'"``.

    Returns:
        What the factory returned.

    Raises:
        SettingsError: a setting is unknown (the message lists the valid ones), a required one is missing, or the
            factory refused a value with `TypeError` or `ValueError`.
    """
    resolve = getattr(factory, "resolve", None)
    target = cast("Callable[..., T]", resolve()) if callable(resolve) else factory
    _check_names(target, settings, subject)
    try:
        return target(**settings)
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
