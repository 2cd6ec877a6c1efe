"""The memory of a run. This part alone changes it: it remembers evaluations, and forgets what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from cachepolicies.base.host import index_on, ordinary_tensors, read_together, visible
from cachepolicies.base.units import row_maximum
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.contracts.substitute import Substitute, order_of
from cachepolicies.engine.store import Store

Key = tuple[str, str]
"""Branch and place."""


class RowMaxima:
    """Largest magnitudes of the rows of a tensor, finite exactly where the row is.

    Attributes:
        host: a number for every row, where the host sees the tensor without waiting; else ``None``. Where all rows are
            finite it is the largest of all, for each: one pass over the memory tells that.
    """

    __slots__ = ("_values", "host")

    def __init__(self, tensor: Tensor) -> None:
        self._values: Tensor | None = None
        self.host: list[float] | None = None
        tensor = tensor.detach()
        if visible(tensor) and tensor.dtype in _ORDERED:
            low, high = torch.aminmax(tensor)
            largest = max(_number(high), -_number(low))
            if math.isfinite(largest):
                self.host = [largest] * tensor.shape[0]
                return
        self._values = row_maximum(tensor)
        if visible(tensor):
            self.host = self._values.tolist()

    @property
    def values(self) -> Tensor:
        """``(B,)`` the same on the tensor's device."""
        if self._values is None:
            self._values = torch.tensor(self.host)
        return self._values


def _number(scalar: Tensor) -> float:
    value: Any = scalar.tolist()  # unlike `item`, it dispatches no operator
    return float(value)


_ORDERED = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""Kinds of numbers that have a smallest and a largest one."""


@frozen(eq=False)
class Evaluated:
    """An evaluation that is to be remembered.

    Attributes:
        key: branch and place.
        t: noise level.
        point: serial number of the decision it belongs to.
        fresh: ``(len(rows), ...)`` what was computed, or ``(B, ...)`` where ``rows`` is ``None``.
        rows: the rows that were evaluated, ``None`` for all.
        entered: ``(B, ...)`` what had gone into the place, or ``None``.
        maxima: of the latent, all rows.
        owned: whether nobody else writes on ``fresh``, so that it can be kept as it is.
    """

    key: Key
    t: float
    point: int
    fresh: Tensor
    rows: Sequence[int] | None
    entered: Tensor | None
    maxima: RowMaxima
    owned: bool = False


@define(eq=False)
class _Pending:
    """An evaluation whose finiteness the host has not seen yet (accelerators only)."""

    maxima: Tensor
    key: Key
    rows: Sequence[int]
    point: int
    t: float


@define(eq=False)
class Memory:
    """What a run remembers of its evaluations, by branch and place.

    Attributes:
        substitute: says how much is kept.
        batch: rows of the batch.
        notes: of the trace; what was not remembered is said there.
    """

    substitute: Substitute
    batch: int
    notes: list[str]
    _stores: dict[Key, Store] = field(factory=dict)
    _not_finite: dict[tuple[Key, int], EngineReason] = field(factory=dict)
    _pending: list[_Pending] = field(factory=list)
    _present: dict[str, tuple[float, dict[str, Tensor]]] = field(factory=dict)

    def store(self, key: Key) -> Store | None:
        """Return what a branch remembers at a place, ``None`` before its first evaluation there."""
        return self._stores.get(key)

    def held(self, key: Key) -> Store:
        """Return what a branch remembers at a place where something is known to be remembered."""
        return self._stores[key]

    def note_present(self, key: Key, t: float, output: Tensor) -> None:
        """Keep what a branch returned at a place and t for the other branches, if the substitute looks at it."""
        if not self.substitute.wants_branches:
            return
        branch, place = key
        level, outputs = self._present.get(place, (t, {}))
        kept = outputs if level == t else {}
        self._present[place] = (t, {**kept, branch: output.detach().clone()})

    def present(self, key: Key, t: float) -> Mapping[str, Tensor]:
        """Return what the other branches returned at a place and t."""
        branch, place = key
        level, outputs = self._present.get(place, (t, {}))
        return {name: output for name, output in outputs.items() if name != branch} if level == t else {}

    def forget_branch(self, branch: str) -> None:
        """Forget everything that a branch remembers, at every place."""
        self._stores = {key: store for key, store in self._stores.items() if key[0] != branch}
        self._pending = [item for item in self._pending if item.key[0] != branch]
        self._not_finite = {at: why for at, why in self._not_finite.items() if at[0][0] != branch}

    def why_missing(self, key: Key, row: int) -> EngineReason:
        """Return why there is nothing to reuse in a row."""
        return self._not_finite.get((key, row), EngineReason.NOTHING_TO_REUSE)

    def read(self, tensors: Sequence[Tensor]) -> list[list[float]]:
        """Read ``(B,)`` tensors on the host; what has to be seen of earlier evaluations travels along."""
        waiting, self._pending = self._pending, []
        values = read_together([*tensors, *(item.maxima for item in waiting)])
        for item, seen in zip(waiting, values[len(tensors) :], strict=True):
            store = self._stores[item.key]
            for row, peak in zip(item.rows, seen, strict=True):
                if not math.isfinite(peak) and store.holds(row, item.point):
                    self._forget(item.key, row, EngineReason.NON_FINITE_OUTPUT, item.t)
        return values[: len(tensors)]

    def remember(self, done: Evaluated) -> None:
        """Store an evaluation, but for the rows whose input or output is not finite."""
        store = self._stores.get(done.key)
        if store is None:
            # An extrapolation of order 0 is a remembered output itself: its range is not needed.
            sized = self.substitute.guard is not None and order_of(self.substitute) != 0
            store = self._stores[done.key] = Store(self.substitute.history, sized)
        found = RowMaxima(done.fresh)
        if done.maxima.host is None or found.host is None:
            self._remember_unseen(store, done, found)
            return
        names: Sequence[int] = range(self.batch) if done.rows is None else done.rows
        good = []
        for at, (row, peak) in enumerate(zip(names, found.host, strict=True)):
            if not math.isfinite(done.maxima.host[row]):
                self._forget(done.key, row, EngineReason.NON_FINITE_INPUT, done.t)
            elif not math.isfinite(peak):
                self._forget(done.key, row, EngineReason.NON_FINITE_OUTPUT, done.t)
            else:
                good.append(at)
        if self._not_finite:
            for at in good:
                self._not_finite.pop((done.key, names[at]), None)
        if len(good) == len(names):
            self._push(store, done, done.fresh, done.rows)
        elif good:
            kept = done.fresh.index_select(0, index_on(good, done.fresh.device))
            self._push(store, done, kept, [names[at] for at in good])

    def _push(self, store: Store, done: Evaluated, fresh: Tensor, rows: Sequence[int] | None) -> None:
        entered = done.entered
        if entered is not None and rows is not None:
            entered = entered.index_select(0, index_on(rows, entered.device))
        owned = done.owned and fresh is done.fresh
        with ordinary_tensors():
            store.push(fresh, done.t, done.point, rows, self.batch, entered, owned=owned)

    def _remember_unseen(self, store: Store, done: Evaluated, found: RowMaxima) -> None:
        """Store an evaluation on an accelerator without waiting to see whether it is finite.

        The device puts the row's last finite value in the place of one that is not, and the next read by the policy, if
        it reads at all, drops the row. With a policy that never reads, a row whose first output is not finite has
        nothing to put in its place: it is handed out as the model returned it.
        """
        rows, fresh, maxima = done.rows, done.fresh, done.maxima.values
        chosen = maxima if rows is None else maxima.index_select(0, index_on(rows, maxima.device))
        both = torch.maximum(chosen.float(), found.values.float())
        healed = fresh
        if store.history:
            before = store.history[0].output
            before = before if rows is None else before.index_select(0, index_on(rows, before.device))
            if before.shape == fresh.shape and before.dtype == fresh.dtype:
                healed = torch.where(torch.isfinite(both).reshape(-1, *[1] * (fresh.ndim - 1)), fresh, before)
        self._push(store, done, healed, rows)
        names = list(range(self.batch)) if rows is None else list(rows)
        for row in names:
            self._not_finite.pop((done.key, row), None)
        replaced = set(names)
        self._pending = [p for p in self._pending if p.key != done.key or not replaced.issuperset(p.rows)]
        self._pending.append(_Pending(both, done.key, names, done.point, done.t))

    def _forget(self, key: Key, row: int, why: EngineReason, t: float) -> None:
        self._stores[key].drop((row,))
        self._not_finite[key, row] = why
        note = f"{why} at t={t:g}, not remembered"
        if note not in self.notes:
            self.notes.append(note)
