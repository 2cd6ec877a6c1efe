"""What one branch remembers: its last outputs, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cachepolicies._host import index_on
from cachepolicies._substitute import Refresh


class Store:
    """The last refreshes of one branch, newest first, as many as the substitute asked for.

    Rows are refreshed independently: each row's history is its own. The store owns its tensors; it copies what it is
    given, so a sampler may change an output in place.
    """

    def __init__(self, history: int) -> None:
        self._capacity = history
        self._refreshes: list[Refresh] = []

    @property
    def history(self) -> Sequence[Refresh]:
        """The refreshes, newest first."""
        return self._refreshes

    def holds(self, row: int, point: int) -> bool:
        """Whether the newest entry of ``row`` is a finite output computed at the decision ``point``."""
        if not self._refreshes:
            return False
        newest = self._refreshes[0]
        return newest.filled[row] and newest.point[row] == point

    def push(self, output: Tensor, t: float, point: int, rows: Sequence[int] | None, batch: int) -> None:
        """Remember an evaluation.

        Args:
            output: ``(len(rows), ...)``, or ``(batch, ...)`` when ``rows`` is ``None``; copied.
            t: noise level of the evaluation.
            point: serial number of the decision it belongs to.
            rows: which rows of the batch were evaluated, ``None`` for all.
            batch: rows of the batch.
        """
        output = output.detach()
        if rows is None:
            fresh = Refresh(output.clone(), [t] * batch, [True] * batch, [point] * batch)
            self._refreshes = [fresh, *self._refreshes][: self._capacity]
            return
        if not self._refreshes:
            empty = output.new_zeros((batch, *output.shape[1:]))
            self._refreshes = [Refresh(empty, [math.nan] * batch, [False] * batch, [-1] * batch)]
        index = index_on(rows, output.device)
        if len(self._refreshes) < self._capacity:
            oldest = self._refreshes[-1]
            blank = Refresh(oldest.output.clone(), [math.nan] * batch, [False] * batch, [-1] * batch)
            self._refreshes.append(blank)
        for older, newer in zip(self._refreshes[:0:-1], self._refreshes[-2::-1], strict=True):
            older.output.index_copy_(0, index, newer.output.index_select(0, index))
            for row in rows:
                older.t[row], older.filled[row], older.point[row] = newer.t[row], newer.filled[row], newer.point[row]
        newest = self._refreshes[0]
        newest.output.index_copy_(0, index, output)
        for row in rows:
            newest.t[row], newest.filled[row], newest.point[row] = t, True, point

    def drop(self, rows: Sequence[int]) -> None:
        """Forget everything about these rows."""
        for refresh in self._refreshes:
            for row in rows:
                refresh.t[row], refresh.filled[row], refresh.point[row] = math.nan, False, -1
