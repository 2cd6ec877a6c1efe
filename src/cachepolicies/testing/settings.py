"""Properties of everything that a user writes: a name, frozen settings, specs, and resolving that changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import attrs

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.specs import NAME_PATTERN, format_spec
from cachepolicies.contracts.setup import Setup
from cachepolicies.registry.registry import Registry
from cachepolicies.testing.checks import Property, Suite, expect, same
from cachepolicies.testing.comparing import copied, difference_between
from cachepolicies.testing.failures import DoesNotApply


class SettingsCase(Protocol):
    """What these properties know of a case."""

    @property
    def settings(self) -> Any:
        """The object as a user writes it."""

    @property
    def registry(self) -> Registry[Any]:
        """Where it may be registered."""

    def setup(self) -> Setup:
        """Return what it is resolved with."""


_SUITE: Suite[Any] = Suite("settings")


@_SUITE.property()
def has_a_name(case: SettingsCase) -> None:
    """Its name is a short text that can stand in a spec."""
    name = case.settings.name
    expect(isinstance(name, str) and NAME_PATTERN.fullmatch(name), f"the name is {name!r}")


@_SUITE.property()
def settings_are_frozen(case: SettingsCase) -> None:
    """No setting can be changed once it is made."""
    made = copied(case.settings)
    names = [f.name for f in attrs.fields(type(made))] if attrs.has(type(made)) else list(getattr(made, "__dict__", ()))
    for name in names:
        try:
            setattr(made, name, getattr(made, name))
        except (AttributeError, TypeError):
            continue
        expect(False, f"{name!r} can be set; write @attrs.frozen above the class")


@_SUITE.property()
def settings_print(case: SettingsCase) -> None:
    """It prints its settings, not where it lies in memory."""
    text = repr(case.settings)
    expect(f"{id(case.settings):x}" not in text, f"it prints as {text}")


@_SUITE.property()
def settings_equal_their_copies(case: SettingsCase) -> None:
    """A copy of it equals it, and so does a deep copy."""
    for kind in (copy.copy, copy.deepcopy):
        made = kind(case.settings)
        expect(made == case.settings, f"a {kind.__name__} does not equal it")


@_SUITE.property()
def a_spec_makes_it_again(case: SettingsCase) -> None:
    """Where its name is registered, the spec of its settings makes an equal object."""
    made = case.settings
    if made.name not in case.registry or not attrs.has(type(made)):
        raise DoesNotApply("it is not registered under its name, or is no attrs class")
    given = {f.alias or f.name: getattr(made, f.name) for f in attrs.fields(type(made)) if f.init}
    changed = {name: value for name, value in given.items() if not _is_default(type(made), name, value)}
    try:
        spec = format_spec(made.name, changed)
    except SettingsError as error:
        raise DoesNotApply("these settings cannot be written in a spec") from error
    again = case.registry.create(spec)
    if type(again) is not type(made):
        raise DoesNotApply(f"{made.name!r} is registered for another class")
    expect(again == made, f"{spec!r} makes {again!r}")


@_SUITE.property()
def resolving_leaves_the_settings(case: SettingsCase) -> None:
    """Resolving it changes nothing of it, and twice gives the same."""
    if not hasattr(case.settings, "resolve"):
        raise DoesNotApply("it is not resolved")
    setup, before = case.setup(), copied(case.settings)
    one = case.settings.resolve(setup)
    same(difference_between(before, case.settings, type(before).__name__), "resolve changed the settings")
    other = case.settings.resolve(setup)
    same(difference_between(one, other, type(one).__name__), "resolved twice it is not the same")


def _is_default(kind: Any, alias: str, value: object) -> bool:
    for each in attrs.fields(kind):
        if (each.alias or each.name) == alias:
            default = each.default
            return not isinstance(default, attrs.Factory) and default is not attrs.NOTHING and bool(default == value)  # type: ignore[arg-type]
    return False


SETTINGS: Sequence[Property[Any]] = tuple(_SUITE.properties.values())
"""The properties, for the suites of those kinds that have settings."""
