"""How far a tensor has moved since another, relative to that one, for each deciding sample."""

from __future__ import annotations

import math

from torch import Tensor

from cachepolicies import Reason, Step


class Why(Reason):
    """Why a sample is evaluated or reused."""

    WARM_UP = "one of the steps that are always computed"
    NOTHING_YET = "nothing to compare with"
    FAR = "the first blocks have changed too much"
    NEAR = "the first blocks have hardly changed"
    LIMIT = "reused as often as it may be"


def relative_changes(step: Step, now: Tensor, before: Tensor) -> tuple[float, ...]:
    """Return ``mean|now - before| / mean|before|`` for every deciding sample; ``nan`` where both are zero.

    Args:
        step: at which it is decided.
        now: ``(B, ...)``.
        before: ``(B, ...)`` of the same shape; what it has moved from.
    """
    moved = (now - before).abs().flatten(1).mean(1)
    size = before.abs().flatten(1).mean(1)
    moves, sizes = step.read(moved, size)
    found = []
    for decision in range(step.run.decisions):
        rows = step.run.layout.rows_of(decision)
        total = sum(sizes[row] for row in rows)
        found.append(sum(moves[row] for row in rows) / total if total else math.nan)
    return tuple(found)
