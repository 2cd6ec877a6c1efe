"""What one branch remembers at one place: its last outputs, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from attrs import define
from torch import Tensor

from cachepolicies.base.host import index_on, without_gradient
from cachepolicies.base.units import row_rms
from cachepolicies.contracts.substitute import Refresh

INPUT = "(input)"
"""Among what is kept with a refresh: what had gone into the place."""

BRANCH = "(branch) "
"""Among what is kept with a refresh: in front of the name of another branch, what that had returned."""


@define(eq=False)
class Sizes:
    """The range of the RMS of every row's evaluated outputs, ``nan`` before the first finite one.

    Attributes:
        low: ``(B,)`` the smallest, float32 or float64, on the outputs' device.
        high: ``(B,)`` the largest.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def unknown(cls, like: Tensor, batch: int) -> Sizes:
        """Return the range of ``batch`` rows before the first output."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        nothing = torch.full((batch,), math.nan, dtype=dtype, device=like.device)
        return cls(nothing, nothing.clone())

    def take(self, output: Tensor, index: Tensor | None) -> None:
        """Widen the range by an output ``(n, ...)`` of the rows ``index`` ``(n,)``, of all with ``None``."""
        sizes = row_rms(output)
        # On an accelerator an output that is not finite may get here before anyone has seen it.
        sizes = torch.where(torch.isfinite(sizes), sizes, math.nan)
        if index is None:
            self.low, self.high = torch.fmin(self.low, sizes), torch.fmax(self.high, sizes)
            return
        self.low = self.low.index_copy(0, index, torch.fmin(self.low.index_select(0, index), sizes))
        self.high = self.high.index_copy(0, index, torch.fmax(self.high.index_select(0, index), sizes))


class Store:
    """The last refreshes of one branch at one place, newest first, as many as the substitute asked for.

    Rows are refreshed independently: each row's history is its own. The store owns its tensors; it copies what it is
    given, so a sampler may change an output in place.

    Args:
        history: how many refreshes to keep.
        sized: whether to keep the range of the outputs' RMS too, for a substitute that is guarded by it.
    """

    def __init__(self, history: int, sized: bool = False) -> None:
        self._capacity = history
        self._sized = sized
        self._refreshes: list[Refresh] = []
        self._sizes: Sizes | None = None
        self._unseen = 0
        self.clipped: Tensor | None = None
        """``(B,)`` bool, rows in which the guard held an output back since the last refresh; ``None`` for none."""

    @property
    def history(self) -> Sequence[Refresh]:
        """The refreshes, newest first."""
        return self._refreshes

    def unseen(self) -> Sequence[Refresh]:
        """Return the refreshes that are still to be looked at, newest first, and count them as seen."""
        found, self._unseen = self._refreshes[: self._unseen], 0
        return found

    @property
    def sizes(self) -> Sizes | None:
        """The range of the RMS of every row since the run began, if it is kept and something was remembered."""
        return self._sizes

    def holds(self, row: int, point: int) -> bool:
        """Whether the newest entry of ``row`` is of the decision ``point``; finite, once it was looked at."""
        if not self._refreshes:
            return False
        newest = self._refreshes[0]
        return newest.filled[row] and newest.point[row] == point

    def push(
        self,
        output: Tensor,
        t: float,
        point: int,
        rows: Sequence[int] | None,
        batch: int,
        beside: Mapping[str, Tensor] | None = None,
        *,
        owned: bool = False,
        unseen: bool = False,
    ) -> None:
        """Remember an evaluation.

        Args:
            output: ``(len(rows), ...)``, or ``(batch, ...)`` when ``rows`` is ``None``; copied.
            t: noise level of the evaluation.
            point: serial number of the decision it belongs to.
            rows: which rows of the batch were evaluated, ``None`` for all.
            batch: rows of the batch.
            beside: what is kept with it, rows as those of the output: `INPUT` what had gone into the place, `BRANCH`
                and a name what another branch had returned, and signals by name.
            owned: whether an output of all rows can be kept as it is, not copied.
            unseen: whether it is still to be looked at whether an output of all rows is finite.
        """
        if rows is None and not beside:
            self.push_whole(output, t, point, batch, owned=owned, unseen=unseen)
            return
        output = without_gradient(output)
        beside = {name: without_gradient(value) for name, value in beside.items()} if beside else {}
        if self.clipped is not None:
            index = None if rows is None else index_on(rows, self.clipped.device)
            self.clipped = None if index is None else self.clipped.index_fill(0, index, False)
        if rows is None:
            self.push_whole(output, t, point, batch, owned=owned, unseen=unseen)
            newest = self._refreshes[0]
            kept = {name: value.clone() for name, value in beside.items()}
            self._refreshes[0] = _refresh(newest.output, newest.t, newest.filled, newest.point, kept)
            return
        if not self._refreshes:
            self._refreshes = [_blank(output, beside, batch)]
        index = index_on(rows, output.device)
        self._measure(output, index, batch)
        if len(self._refreshes) < self._capacity:
            self._refreshes.append(_blank(output, beside, batch))
        beside = self._with_all_branches(beside, output, batch)
        for older, newer in zip(self._refreshes[:0:-1], self._refreshes[-2::-1], strict=True):
            older.output.index_copy_(0, index, newer.output.index_select(0, index))
            for name, value in _beside(newer).items():
                _beside(older)[name].index_copy_(0, index, value.index_select(0, index))
            for row in rows:
                older.t[row], older.filled[row], older.point[row] = newer.t[row], newer.filled[row], newer.point[row]
        newest = self._refreshes[0]
        newest.output.index_copy_(0, index, output)
        for name, value in beside.items():
            _beside(newest)[name].index_copy_(0, index, value)
        for row in rows:
            newest.t[row], newest.filled[row], newest.point[row] = t, True, point

    def push_whole(
        self, output: Tensor, t: float, point: int, batch: int, *, owned: bool = False, unseen: bool = False
    ) -> None:
        """Remember an evaluation of all rows with nothing beside it; see `push`."""
        if output.requires_grad:
            output = output.detach()
        self.clipped = None
        if self._refreshes:
            self._start_over_if_different(output)
        if self._sized:
            self._measure(output, None, batch)
        own = output if owned else output.clone()
        fresh = Refresh(own, [t] * batch, [True] * batch, [point] * batch)
        self._refreshes = [fresh, *self._refreshes[: self._capacity - 1]]
        if unseen and self._unseen < self._capacity:
            self._unseen += 1

    def note_clipped(self, clipped: Tensor, evaluated: Sequence[int]) -> None:
        """Note the rows ``(B,)`` bool in which the guard held an output back, but for those that were evaluated."""
        if evaluated:
            clipped = clipped.index_fill(0, index_on(evaluated, clipped.device), False)
        self.clipped = clipped if self.clipped is None else self.clipped | clipped

    def drop(self, rows: Sequence[int], since: int = 0) -> None:
        """Forget the outputs of these rows, those that are newer than the refresh ``since`` excepted.

        The range of their sizes stays.
        """
        for refresh in self._refreshes[since:]:
            for row in rows:
                refresh.t[row], refresh.filled[row], refresh.point[row] = math.nan, False, -1

    def _start_over_if_different(self, output: Tensor) -> None:
        """Forget what an output of all rows cannot be combined with: a model may change its dtype or shape."""
        kept = self._refreshes[0].output
        if kept.shape != output.shape or kept.dtype != output.dtype or kept.device != output.device:
            self._refreshes, self._sizes, self._unseen = [], None, 0

    def _with_all_branches(self, beside: Mapping[str, Tensor], output: Tensor, batch: int) -> dict[str, Tensor]:
        """Return what is kept with the rows of an output such that it and every refresh have the same branches.

        What a branch returned is ``nan`` in rows for which it was not called.
        """
        known = {name: each for refresh in self._refreshes for name, each in refresh.branches.items()}
        known.update({name.removeprefix(BRANCH): each for name, each in beside.items() if name.startswith(BRANCH)})
        for refresh in self._refreshes:
            missing = {
                name: each.new_full((batch, *each.shape[1:]), math.nan)
                for name, each in known.items()
                if name not in refresh.branches
            }
            refresh.branches = {**refresh.branches, **missing}
        rows = output.shape[0]
        nothing = {BRANCH + name: each.new_full((rows, *each.shape[1:]), math.nan) for name, each in known.items()}
        return {**nothing, **beside}

    def _measure(self, output: Tensor, index: Tensor | None, batch: int) -> None:
        if not self._sized:
            return
        if self._sizes is None:
            self._sizes = Sizes.unknown(output, batch)
        self._sizes.take(output, index)


def _refresh(
    output: Tensor, t: list[float], filled: list[bool], point: list[int], beside: dict[str, Tensor]
) -> Refresh:
    branches = {name.removeprefix(BRANCH): beside.pop(name) for name in [*beside] if name.startswith(BRANCH)}
    return Refresh(output, t, filled, point, beside.pop(INPUT, None), beside, branches)


def _beside(refresh: Refresh) -> dict[str, Tensor]:
    """Return what is kept with a refresh, by name."""
    branches = {BRANCH + name: output for name, output in refresh.branches.items()}
    return {**refresh.signals, **branches, **({} if refresh.input is None else {INPUT: refresh.input})}


def _blank(output: Tensor, beside: Mapping[str, Tensor], batch: int) -> Refresh:
    """Return a refresh that holds nothing, for rows like those of an output."""
    empty = output.new_zeros((batch, *output.shape[1:]))
    nothing = {name: value.new_zeros((batch, *value.shape[1:])) for name, value in beside.items()}
    return _refresh(empty, [math.nan] * batch, [False] * batch, [-1] * batch, nothing)
