"""How a score is compared with a tolerance: the papers and their authors' code differ in the sign."""

from __future__ import annotations

from typing import Literal, TypeAlias

Comparison: TypeAlias = Literal["<=", "<"]
"""``"<="`` reuses at a score that equals the tolerance, ``"<"`` does not."""

COMPARISONS: tuple[Comparison, ...] = ("<=", "<")


def within(score: float, tolerance: float, comparison: Comparison | None) -> bool:
    """Return whether a score is within its tolerance; a score that is not a number never is."""
    return score < tolerance if comparison == "<" else score <= tolerance
