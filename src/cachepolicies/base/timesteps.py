"""Whether timesteps are the same: samplers keep theirs in float32, and round them differently."""

from __future__ import annotations

from collections.abc import Sequence

SAME_T = 1e-5
"""Two t closer than this fraction of the largest |t| are the same timestep, rounded differently."""


def slack_of(timesteps: Sequence[float]) -> float:
    """Return how far two t may be apart that are the same timestep of a run."""
    return SAME_T * max((abs(t) for t in timesteps), default=0.0)


def same_timesteps(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two runs visit the same timesteps."""
    return len(one) == len(other) and part_of(one, other) == 0


def part_of(levels: Sequence[float], timesteps: Sequence[float]) -> int | None:
    """Return where in a run levels begin that follow each other there, ``None`` if they do not.

    A pipeline with two denoisers calls each of them in a part of the run only.
    """
    slack = slack_of(timesteps)
    for start in range(len(timesteps) - len(levels) + 1):
        if all(abs(a - b) <= slack for a, b in zip(levels, timesteps[start:], strict=False)):
            return start
    return None
