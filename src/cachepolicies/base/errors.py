"""The exceptions and warnings of the library; each message names what was wrong, the value, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_CHARACTERS = 2000
"""Longest message; of a longer one the middle is left out."""


def readable(message: object) -> str:
    """Return a message such that a terminal only shows it: short, and without characters that it would obey.

    Names, files and texts of strangers stand in messages. Control characters, and those that turn the direction of
    writing, are written as their escapes; line breaks and tabs stay.
    """
    text = str(message)
    if len(text) > MOST_CHARACTERS:
        kept = MOST_CHARACTERS * 3 // 4, MOST_CHARACTERS // 5
        text = f"{text[: kept[0]]} ... ({len(text) - sum(kept)} characters left out) ... {text[-kept[1] :]}"
    return printable(text)


def printable(text: str) -> str:
    """Return a text with the characters that a terminal would obey written as their escapes; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


class CachePoliciesError(Exception):
    """Base of every error that this library raises on purpose."""

    def __init__(self, message: object = "") -> None:
        super().__init__(readable(message))


class InputError(CachePoliciesError, ValueError):
    """A call of the denoiser had an input or an output that cannot be cached or sliced safely."""


class RowsUnknownError(InputError):
    """Which rows of the tensors of a call belong to which sample cannot be known: samples cannot decide apart."""


class SettingsError(CachePoliciesError, ValueError):
    """A setting has an unknown name, a wrong type, or a value out of range."""


class RunError(CachePoliciesError, ValueError):
    """The calls do not fit the run that was declared, or the branches are not told apart."""


class PolicyError(CachePoliciesError, TypeError):
    """A policy or a substitute broke its contract."""


class NeedsError(CachePoliciesError, ValueError):
    """A policy needs something (a profile, the run length, a signal) that was not provided."""


class ProfileError(CachePoliciesError, ValueError):
    """A profile cannot be read, is not valid, or was calibrated for something else."""


class PluginError(CachePoliciesError):
    """A plugin cannot be loaded or registered."""


class UnknownNameError(CachePoliciesError, LookupError):
    """A name is not registered; the message lists the known ones and the nearest match."""


class CacheWarning(UserWarning):
    """Something worth knowing about a run, for example that nothing was reused."""

    def __init__(self, message: object = "") -> None:
        super().__init__(readable(message))


def nearest_match_hint(name: str, known: Iterable[str]) -> str:
    """Return the known names as one sentence, preceded by ``did you mean ...?`` where one of them is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
