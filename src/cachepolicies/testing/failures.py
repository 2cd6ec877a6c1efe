"""What a check raises: a property that does not hold, or one that does not apply."""

from __future__ import annotations

import unittest


class PropertyError(AssertionError):
    """An object does not have a property that its contract promises.

    Attributes:
        subject: the object, as it prints.
        name: of the property.
        sentence: what the property says.
        example: the smallest values that were found for which it does not hold, by name; empty where none are drawn.
    """

    def __init__(
        self, subject: str, name: str, sentence: str, found: str, example: dict[str, str] | None = None
    ) -> None:
        self.subject, self.name, self.sentence, self.found = subject, name, sentence, found
        self.example = dict(example or {})
        shown = "".join(f"\n    {key} = {value}" for key, value in self.example.items())
        smallest = f"\n  smallest example:{shown}" if shown else ""
        super().__init__(f"{subject}\n  does not have the property {name!r}: {sentence}\n  found: {found}{smallest}")


class DoesNotApply(unittest.SkipTest):  # pytest shows it as a skipped test
    """A property says nothing about this object."""
