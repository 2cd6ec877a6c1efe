"""Whether wall times can be believed: what else the machine did, and how far two timings of the same are apart."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

_APART = 1.15
"""Two timings of the same that differ by more than this factor are not to be divided by."""

_OTHERS = 0.75
"""Processes that others keep running, from which on the machine counts as busy."""


def load() -> float | None:
    """Return how many processes were running in the last minute, ``None`` where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def why_unreliable(uncached: Sequence[float], before: float | None, after: float | None) -> str:
    """Return why the wall times of a comparison say little; empty where they do not.

    Args:
        uncached: seconds of the uncached passes, the first at the start and the last at the end.
        before: load before the comparison.
        after: load at its end, its own threads included.
    """
    reasons = []
    if len(uncached) > 1 and max(uncached) > _APART * min(uncached):
        reasons.append(f"the uncached samples took {min(uncached):.1f} s once and {max(uncached):.1f} s another time")
    if before is not None and before > _OTHERS:
        reasons.append(f"{before:.1f} processes were running before it began")
    own = float(torch.get_num_threads())
    if after is not None and after > own + _OTHERS:
        reasons.append(f"{after - own:.1f} processes beside its own were running at its end")
    return "; ".join(reasons)
