"""Settings that were left open: filled in from a profile, then from defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cachepolicies.base.errors import ProfileError, SettingsError, nearest_match_hint
from cachepolicies.base.settings import non_negative_int, plain, refuse

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile


P = TypeVar("P")


def default_settings(profile: Profile | None, policy_name: str) -> dict[str, Any]:
    """Return the settings that a profile has for a policy, an empty dict where it has none."""
    return {} if profile is None else dict(profile.settings.get(policy_name, {}))


def fill(policy: P, profile: Profile | None, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> P:
    """Return the policy with the settings that are ``None`` taken from ``settings``, else from ``defaults``.

    Args:
        policy: a frozen attrs object.
        profile: where ``settings`` are from, named in messages.
        settings: see `default_settings`.
        defaults: by name; what is missing from both stays ``None``.

    Raises:
        ProfileError: the profile's settings have an unknown name or a value that the policy refuses.
    """
    kind: Any = type(policy)
    names = [field.name for field in attrs.fields(kind)]
    given = {name: value for name, value in settings.items() if value is not None}
    origin = f"profile {'' if profile is None else profile.name!r}, settings of {kind.name!r}"
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ProfileError(f"{origin}: unknown setting {unknown[0]!r}: {nearest_match_hint(unknown[0], names)}")
    values = {**defaults, **given}
    taken = {name: value for name, value in values.items() if getattr(policy, name) is None}
    try:
        filled: P = kind(**{**{name: getattr(policy, name) for name in names}, **taken})
    except SettingsError as error:
        raise ProfileError(f"{origin}: {error}") from error
    return filled


def as_numbers(values: Any) -> Any:
    """Return a sequence or array as a tuple of Python numbers; an attrs converter, anything else is left as it is.

    What is left is for the validator to refuse, which can name the setting.
    """
    if values is None or isinstance(values, (str, bytes, Mapping)):
        return values
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        return tuple(plain(value) for value in values)
    except TypeError:
        return values


def numbers(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a tuple of at least one finite number.

    Raises:
        SettingsError: anything else.
    """
    if not isinstance(value, tuple) or not value:
        refuse(instance, attribute, value, "a sequence of at least one finite number")
    for place, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            refuse(instance, attribute, number, f"a sequence of finite numbers, but entry {place} is not one")


def as_streams(values: Any) -> Any:
    """Return one sequence of numbers, or one for each name in a mapping, as `as_numbers` does."""
    if isinstance(values, Mapping):
        return {name: as_numbers(sequence) for name, sequence in values.items()}
    return as_numbers(values)


def streams(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept what `as_streams` returns: finite numbers, in one sequence or in one for each name.

    Raises:
        SettingsError: anything else.
    """
    if not isinstance(value, Mapping):
        numbers(instance, attribute, value)
        return
    if not value or not all(isinstance(name, str) and name for name in value):
        refuse(instance, attribute, value, "a sequence of numbers, or a mapping from the name of a stream to one")
    for sequence in value.values():
        numbers(instance, attribute, sequence)


def positions(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Accept a tuple of integers >= 0, which may be empty.

    Raises:
        SettingsError: anything else.
    """
    if not isinstance(value, tuple):
        refuse(instance, attribute, value, "a sequence of integers >= 0")
    for position in value:
        non_negative_int(instance, attribute, position)
