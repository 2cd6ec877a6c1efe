"""The memory of a run. This part alone changes it: it remembers evaluations, and forgets what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from cachepolicies.base.host import index_on, ordinary_tensors, read_together, visible, without_gradient
from cachepolicies.base.units import row_maximum
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.contracts.substitute import Substitute, order_of
from cachepolicies.engine.store import BRANCH, INPUT, Store

Key = tuple[str, str]
"""Branch and place."""


def finite_rows(tensor: Tensor) -> list[bool]:
    """Return for every row of a tensor ``(B, ...)`` whether it is finite, as far as the host sees it."""
    if not visible(tensor):
        return [True] * tensor.shape[0]
    tensor = without_gradient(tensor)
    # The sum is finite only where every number is: one pass over the memory tells of all rows. It may overflow.
    if tensor.dtype in _SUMMED and math.isfinite(_number(tensor.sum())):
        return [True] * tensor.shape[0]
    return [math.isfinite(peak) for peak in row_maximum(tensor).tolist()]


def _number(scalar: Tensor) -> float:
    value: Any = scalar.tolist()  # unlike `item`, it dispatches no operator
    return float(value)


_SUMMED = frozenset((torch.float32, torch.float64))
"""Kinds of numbers whose sums seldom overflow, and are quicker than their extremes."""


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
        signals: ``(B, ...)`` values that are kept with it, by name.
        branches: ``(B, ...)`` what other branches returned, which is kept with it, by branch.
        owned: whether nobody else writes on ``fresh``, so that it can be kept as it is.
    """

    key: Key
    t: float
    point: int
    fresh: Tensor
    rows: Sequence[int] | None
    entered: Tensor | None
    owned: bool = False
    signals: Mapping[str, Tensor] = field(factory=dict)
    branches: Mapping[str, Tensor] = field(factory=dict)


@define(eq=False)
class _Pending:
    """An evaluation whose finiteness the host has not seen yet (accelerators only)."""

    maxima: Tensor
    key: Key
    rows: Sequence[int]
    point: int
    t: float


@define(eq=False)
class _Passed:
    """What has flowed on from a place, newest first.

    Attributes:
        levels: noise levels.
        values: ``(B, ...)`` at the newest of them, as many as are recalled.
        entered: ``(B, ...)`` what had gone into the place each time, if the substitute looks at it.
    """

    levels: tuple[float, ...] = ()
    values: tuple[Tensor, ...] = ()
    entered: tuple[Tensor, ...] = ()

    def goes_with(self, output: Tensor, entered: Tensor | None) -> bool:
        """Return whether the newest values are of the kind of these, if there are any."""
        news = (output,) if entered is None else (output, entered)
        return all(
            (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device)
            for old, new in zip((*self.values[:1], *self.entered[:1]), news, strict=False)
        )


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
    _passed: dict[Key, _Passed] = field(factory=dict)

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

    def note_passed(self, key: Key, t: float, output: Tensor, entered: Tensor | None) -> None:
        """Keep what flowed on from a place, and what had gone in if it looks at that, for a substitute that recalls."""
        count = self.substitute.recalls
        if not self.substitute.wants_input:
            entered = None
        before = self._passed.get(key, _Passed())
        if not before.goes_with(output, entered):
            before = _Passed()
        again = int(before.levels[:1] == (t,))
        with ordinary_tensors():
            kept = without_gradient(output).clone()
            inputs = () if entered is None else (without_gradient(entered).clone(), *before.entered[again:])
        values = (kept, *before.values[again:])
        self._passed[key] = _Passed((t, *before.levels[again:]), values[:count], inputs[:count])

    def passed(self, key: Key) -> tuple[tuple[float, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the noise levels at which something has flowed on from a place, newest first, and the newest values.

        And what had gone in each time. Where the substitute does not recall it, there are none.
        """
        found = self._passed.get(key, _Passed())
        return found.levels, found.values, found.entered

    def forget_branch(self, branch: str) -> None:
        """Forget everything that a branch remembers, at every place."""
        self._stores = {key: store for key, store in self._stores.items() if key[0] != branch}
        self._passed = {key: passed for key, passed in self._passed.items() if key[0] != branch}
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

    def remember_whole(self, key: Key, output: Tensor, t: float, point: int) -> None:
        """Store an evaluation of all rows with nothing beside it, as `remember` would, by the shortest way.

        Args:
            key: branch and place.
            output: ``(B, ...)``; copied.
            t: noise level of the evaluation.
            point: serial number of the decision it belongs to.
        """
        store = self._stores.get(key)
        if store is None or not visible(output) or torch.is_inference_mode_enabled():
            self.remember(Evaluated(key, t, point, output, None, None))
        else:
            store.push_whole(output, t, point, self.batch, unseen=True)

    def remember(self, done: Evaluated) -> None:
        """Store an evaluation. Whether it is finite is looked at no earlier than something is to be reused.

        A correction reads what was remembered at evaluations too; then it is looked at now.
        """
        store = self._stores.get(done.key)
        if store is None:
            # An extrapolation of order 0 is a remembered output itself: its range is not needed.
            sized = self.substitute.guard is not None and order_of(self.substitute) != 0
            store = self._stores[done.key] = Store(self.substitute.history, sized)
        if not visible(done.fresh):
            self._remember_unseen(store, done)
        elif done.rows is None:
            self._push(store, done, done.fresh, None, unseen=True)
            if self.substitute.corrects:
                self.settle(done.key)
        else:
            self._remember_rows(store, done, done.rows)

    def settle(self, key: Key) -> None:
        """Forget the rows of what a branch remembers at a place that are not finite, and all that came before them."""
        store = self._stores.get(key)
        if store is None:
            return
        for at, refresh in enumerate(store.unseen()):
            for row, finite in enumerate(finite_rows(refresh.output)):
                if finite:
                    if not at:
                        self._not_finite.pop((key, row), None)
                elif refresh.filled[row]:
                    if not at:
                        self._not_finite[key, row] = EngineReason.NON_FINITE_OUTPUT
                    self._note(EngineReason.NON_FINITE_OUTPUT, refresh.t[row])
                    store.drop((row,), since=at)

    def _remember_rows(self, store: Store, done: Evaluated, rows: Sequence[int]) -> None:
        """Store an evaluation of some rows, but for those that are not finite."""
        self.settle(done.key)
        good = []
        for at, (row, finite) in enumerate(zip(rows, finite_rows(done.fresh), strict=True)):
            if not finite:
                self._forget(done.key, row, EngineReason.NON_FINITE_OUTPUT, done.t)
            else:
                good.append(at)
                self._not_finite.pop((done.key, row), None)
        if len(good) == len(rows):
            self._push(store, done, done.fresh, rows)
        elif good:
            kept = done.fresh.index_select(0, index_on(good, done.fresh.device))
            self._push(store, done, kept, [rows[at] for at in good])

    def _push(
        self, store: Store, done: Evaluated, fresh: Tensor, rows: Sequence[int] | None, *, unseen: bool = False
    ) -> None:
        beside = done.signals
        if done.entered is not None:
            beside = {**beside, INPUT: done.entered}
        if done.branches:
            beside = {**beside, **{BRANCH + name: output for name, output in done.branches.items()}}
        if rows is not None and beside:
            beside = {name: value.index_select(0, index_on(rows, value.device)) for name, value in beside.items()}
        owned = done.owned and fresh is done.fresh
        with ordinary_tensors():
            store.push(fresh, done.t, done.point, rows, self.batch, beside, owned=owned, unseen=unseen)

    def _remember_unseen(self, store: Store, done: Evaluated) -> None:
        """Store an evaluation on an accelerator without waiting to see whether it is finite.

        The device puts the row's last finite value in the place of one that is not, and the next read by the policy, if
        it reads at all, drops the row. With a policy that never reads, a row whose first output is not finite has
        nothing to put in its place: it is handed out as the model returned it.
        """
        rows, fresh = done.rows, done.fresh
        maxima = row_maximum(fresh.detach())
        healed = fresh
        if store.history:
            before = store.history[0].output
            before = before if rows is None else before.index_select(0, index_on(rows, before.device))
            if before.shape == fresh.shape and before.dtype == fresh.dtype:
                healed = torch.where(torch.isfinite(maxima).reshape(-1, *[1] * (fresh.ndim - 1)), fresh, before)
        self._push(store, done, healed, rows)
        names = list(range(self.batch)) if rows is None else list(rows)
        for row in names:
            self._not_finite.pop((done.key, row), None)
        replaced = set(names)
        self._pending = [p for p in self._pending if p.key != done.key or not replaced.issuperset(p.rows)]
        self._pending.append(_Pending(maxima, done.key, names, done.point, done.t))

    def _forget(self, key: Key, row: int, why: EngineReason, t: float) -> None:
        self._stores[key].drop((row,))
        self._not_finite[key, row] = why
        self._note(why, t)

    def _note(self, why: EngineReason, t: float) -> None:
        note = f"{why} at t={t:g}, not remembered"
        if note not in self.notes:
            self.notes.append(note)
