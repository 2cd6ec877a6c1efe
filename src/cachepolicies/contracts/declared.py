"""What a contract declares, and the look at every subclass that keeps a misspelt member from being ignored.

A contract is an abstract base class. All that may be asked of an implementation is declared in it: what has to be
written is abstract, what may be written has a default. Nothing is found out by looking for attributes. The price of
defaults is that a slip of the pen (``gaurd`` for ``guard``) would silently leave the default in place; therefore a
class that derives from a contract is refused where it is defined if a public method of it is nearly one of the
contract's, is a method where the contract has a property, or cannot be called as the contract says.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC
from collections.abc import Iterator
from typing import Any

from cachepolicies.base.errors import PolicyError

_DECLARES = "_declares_contract"
_PROPERTIES = (property, functools.cached_property)

_LONG = 8
"""Letters from which on a name may have two slips."""


class Contract(ABC):  # noqa: B024  # the contracts below it have the abstract members
    """Base of the contracts. A contract itself is defined with ``declares=True``; whoever derives from it is checked.

    Raises:
        PolicyError: when a subclass is defined whose public member does not fit the contract; names the member, and
            the nearest one that is declared.
    """

    def __init_subclass__(cls, *, declares: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        setattr(cls, _DECLARES, declares)
        if not declares:
            check_members(cls)


def declared_members(kind: type) -> dict[str, Any]:
    """Return the public members that the contracts of a class declare, by name."""
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if vars(base).get(_DECLARES):
            members.update({name: member for name, member in vars(base).items() if not name.startswith("_")})
            members.update(dict.fromkeys((n for n in vars(base).get("__annotations__", {}) if n[0] != "_"), None))
    return members


def check_members(kind: type) -> None:
    """Check the public methods and properties that a class defines against its contracts.

    Raises:
        PolicyError: see `Contract`.
    """
    declared = declared_members(kind)
    for name, member in _own_methods(kind):
        if name not in declared:
            meant = next((each for each in declared if _nearly(name, each)), None)
            if meant is not None:
                raise PolicyError(
                    f"{kind.__module__}.{kind.__qualname__} defines {name!r}, which its contract does not know; did "
                    f"you mean {meant!r}? What the contract knows: {', '.join(sorted(declared))}. A helper of its own "
                    "gets another name, or an underscore in front"
                )
        elif declared[name] is not None:
            _check_shape(kind, name, member, declared[name])


def _nearly(name: str, declared: str) -> bool:
    """Return whether a name is a declared one with a slip of the pen in it, two in a long one."""
    one, other = (each.replace("_", "").lower() for each in (name, declared))
    return _slips(one, other) <= (1 if len(other) < _LONG else 2)


def _slips(one: str, other: str) -> int:
    """Return how many letters differ: left out, put in, exchanged, or swapped with their neighbour."""
    before, last = [0] * (len(other) + 1), list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            cost = min(last[j] + 1, now[j - 1] + 1, last[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            now.append(cost)
        before, last = last, now
    return last[-1]


def _own_methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in list(vars(kind).items()):
        if not name.startswith("_") and isinstance(
            member, (*_PROPERTIES, classmethod, staticmethod, type(_own_methods))
        ):
            yield name, member


def _check_shape(kind: type, name: str, member: Any, declared: Any) -> None:
    where = f"{kind.__module__}.{kind.__qualname__}.{name}"
    if isinstance(declared, _PROPERTIES):
        if not isinstance(member, _PROPERTIES):
            raise PolicyError(f"{where} is a method, and its contract has a property there; write @property above it")
        return
    if not inspect.isfunction(declared):
        return
    if isinstance(member, _PROPERTIES):
        raise PolicyError(f"{where} is a property, and its contract has a method there: {name}{_shown(declared)}")
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    bound = not isinstance(member, staticmethod)
    parameters = list(inspect.signature(declared).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * (bound + len(positional)), **by_name)
    except TypeError as error:
        raise PolicyError(
            f"{where}{_shown(function)} cannot be called as its contract says, {name}{_shown(declared)}: {error}"
        ) from error


def _shown(function: Any) -> str:
    parameters = [str(p).partition(":")[0] for p in inspect.signature(function).parameters.values()]
    return f"({', '.join(parameters)})"
