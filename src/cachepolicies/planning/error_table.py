"""The table of the errors that reuses make, by the refreshes before them.

`cachepolicies.planning.PlanningProblem` says how it is laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from cachepolicies.base.errors import SettingsError

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

LARGEST_TABLE = 20_000_000
"""Most entries that a table of errors may have, 160 MB; larger problems need a smaller ``max_reuse``.

Without a limit on reuses, 4400 steps of order 0, 270 of order 1 and 66 of order 2 stay below.
"""


def longest_of(num_steps: int, max_reuse: int | None) -> int:
    """Return n, the most reuses in a row that can happen: ``max_reuse``, at most N - 1."""
    return num_steps - 1 if max_reuse is None else min(max_reuse, num_steps - 1)


def table_shape(num_steps: int, order: int, max_reuse: int | None) -> tuple[int, ...]:
    """Return the shape of the table of errors of a problem.

    Raises:
        SettingsError: it would have more than `LARGEST_TABLE` entries; says to give ``max_reuse``.
    """
    longest = longest_of(num_steps, max_reuse)
    shape = (num_steps, longest, *(longest + 2,) * order)
    size = num_steps * longest * (longest + 2) ** order
    if size > LARGEST_TABLE:
        limit = longest
        while num_steps * limit * (limit + 2) ** order > LARGEST_TABLE:
            limit -= 1
        given = "no max_reuse" if max_reuse is None else f"max_reuse {max_reuse}"
        raise SettingsError(
            f"planning {num_steps} steps for a substitute of order {order} with {given} takes a table of {size} "
            f"errors, more than the limit of {LARGEST_TABLE}; give max_reuse={limit} or less"
        )
    return shape


def existing(shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return which entries of a table of errors belong to a history that a run can have."""
    grid = np.ogrid[tuple(slice(0, size) for size in shape)]
    r, reuse, gaps = grid[0], grid[1] + 1, grid[2:]
    found = np.broadcast_to(r + reuse < shape[0], shape).copy()
    oldest = r
    for number, gap in enumerate(gaps):
        if number:
            found &= (gaps[number - 1] > 0) | (gap == 0)
        oldest = oldest - gap
    if gaps:
        # fewer refreshes than the substitute remembers: the oldest of them is the first of the run, step 0
        found &= (oldest == 0) | ((oldest > 0) & (gaps[-1] > 0))
    return cast("NDArray[np.bool_]", found)


def table_from_dense(errors: Sequence[Any], max_reuse: int | None = None) -> Floats:
    """Bring errors indexed by the steps of the refreshes into the layout of `cachepolicies.planning.PlanningProblem`.

    Args:
        errors: for the substitute of order p, p + 1 arrays. Array j is ``(N,) * (j + 2)``, indexed by the last j + 1
            refreshes, oldest first, and the reused step: ``errors[0][r, k]``, ``errors[1][q, r, k]``. The arrays before
            the last one are read where no more refreshes than that have been made.
        max_reuse: as for the problem.

    Returns:
        The table, float64, inf where a history cannot be.

    Raises:
        SettingsError: an array has another shape, or the table is too large.
    """
    if len(errors) == 0:
        raise SettingsError("errors is empty; give one array for every order up to the substitute's")
    arrays = [np.asarray(array, dtype=np.float64) for array in errors]
    num_steps, order = arrays[0].shape[0] if arrays[0].ndim else 0, len(arrays) - 1
    for number, array in enumerate(arrays):
        if array.shape != (num_steps,) * (number + 2) or not num_steps:
            raise SettingsError(
                f"errors[{number}] has shape {array.shape}, expected {(num_steps or 'N',) * (number + 2)}"
            )
    shape = table_shape(num_steps, order, max_reuse)
    table = np.full(shape, np.inf)
    entries = np.nonzero(existing(shape))
    depths = sum((gap > 0).astype(np.int64) for gap in entries[2:]) if order else np.zeros(len(entries[0]), np.int64)
    for depth in range(order + 1):
        chosen = tuple(index[depths == depth] for index in entries)
        steps = refreshes_of(chosen, depth)
        entry: tuple[Integers, ...] = (*reversed(steps), chosen[0] + chosen[1] + 1)
        table[chosen] = arrays[depth][entry]
    return table


def refreshes_of(entries: Sequence[Integers], depth: int) -> tuple[Integers, ...]:
    """Return the refreshes, newest first, of entries (index arrays) of a table that have ``depth`` older ones."""
    steps = [entries[0]]
    for number in range(depth):
        steps.append(steps[-1] - entries[2 + number])
    return tuple(steps)
