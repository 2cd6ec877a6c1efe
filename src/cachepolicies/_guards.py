"""The guards that hold for every policy: reuse only what is there, belongs to the decision, and is finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from attrs import evolve
from torch import Tensor

from cachepolicies import _reasons as reasons
from cachepolicies._host import index_on, read_together, visible
from cachepolicies._policy import Decision
from cachepolicies._run import Call, Group, Pending, Run
from cachepolicies._store import Sizes, Store
from cachepolicies._units import row_peak, row_rms


class Peaks:
    """The largest magnitude of every row of a tensor, finite exactly where the row is.

    Attributes:
        values: ``(B,)`` on the tensor's device.
        host: the same numbers, where the host sees them without waiting; else ``None``.
    """

    __slots__ = ("host", "values")

    def __init__(self, tensor: Tensor) -> None:
        self.values = row_peak(tensor.detach())
        self.host: list[float] | None = self.values.tolist() if visible(tensor) else None


def guard(run: Run, group: Group, call: Call, wanted: Decision, peaks: Peaks) -> Decision:
    """Turn reuse into evaluation where there is nothing sound to reuse, and say why."""
    layout, store = run.info.layout, run.stores.get(call.branch)
    gradient = call.x.requires_grad and torch.is_grad_enabled()  # a remembered output has none
    reuse, reason = list(wanted.reuse), list(wanted.reason)
    for d in range(layout.decisions):
        rows = layout.rows_of(d)
        if gradient:
            reuse[d], reason[d] = False, reasons.GRADIENT_WANTED
        elif peaks.host is not None and not all(math.isfinite(peaks.host[row]) for row in rows):
            reuse[d], reason[d] = False, reasons.NON_FINITE_INPUT
        elif reuse[d]:
            # A branch that was not called at the reference holds something older: the score is not about that.
            missing = [row for row in rows if store is None or not store.holds(row, group.refreshed[d])]
            if missing:
                reuse[d] = False
                reason[d] = run.not_finite.get((call.branch, missing[0]), reasons.NOTHING_TO_REUSE)
        if reason[d] == reasons.NOTHING_TO_REUSE and call.branch in run.reshaped_branches:
            reason[d] = reasons.SHAPE_CHANGED
    return evolve(wanted, reuse=tuple(reuse), reason=tuple(reason))


def clip(predicted: Tensor, newest: Tensor, sizes: Sizes | None, factor: float | None) -> tuple[Tensor, Tensor | None]:
    """Hold the newest output in the rows whose extrapolation has left the range seen so far, or is not finite.

    Args:
        predicted: ``(B, ...)`` the extrapolation.
        newest: ``(B, ...)`` the newest output of every row.
        sizes: range of the RMS of the evaluated outputs; needed with a factor.
        factor: how far the RMS may leave that range; ``None`` to look at finiteness only.

    Returns:
        ``(B, ...)``, and ``(B,)`` bool which rows were replaced; ``None`` instead where the host sees that none was.
        On an accelerator nothing waits for the device.
    """
    size = row_rms(predicted)
    if factor is None or sizes is None:
        sound = torch.isfinite(size)
    else:
        # Comparisons with nan are false: a row without a finite size never passes.
        sound = (size >= sizes.low / factor) & (size <= sizes.high * factor)
    if visible(sound) and all(sound.tolist()):
        return predicted, None
    return torch.where(sound.reshape(-1, *[1] * (predicted.ndim - 1)), predicted, newest), ~sound


def reader(run: Run) -> Callable[[Sequence[Tensor]], list[list[float]]]:
    """Return the policy's window on tensors; what the guards wait to see travels along in the same read."""

    def read(tensors: Sequence[Tensor]) -> list[list[float]]:
        waiting, run.pending = run.pending, []
        values = read_together([*tensors, *(item.peaks for item in waiting)])
        for item, seen in zip(waiting, values[len(tensors) :], strict=True):
            store = run.stores[item.branch]
            for row, peak in zip(item.rows, seen, strict=True):
                if not math.isfinite(peak) and store.holds(row, item.point):
                    _forget(run, item.branch, row, reasons.NON_FINITE_OUTPUT, item.t)
        return values[: len(tensors)]

    return read


def remember(
    run: Run,
    call: Call,
    point: int,
    fresh: Tensor,
    rows: Sequence[int] | None,
    peaks: Peaks,
    capacity: int,
    sized: bool = False,
) -> None:
    """Store an evaluation, but for the rows whose input or output is not finite.

    Args:
        run: the run; its store for the call's branch is made if need be.
        call: where the model was evaluated.
        point: serial number of the decision.
        fresh: ``(len(rows), ...)`` what the model returned, or ``(B, ...)`` when ``rows`` is ``None``.
        rows: the rows that were evaluated, ``None`` for all.
        peaks: of the latent, all rows.
        capacity: how many refreshes the store keeps.
        sized: whether it keeps the range of their RMS too.
    """
    store = run.stores.get(call.branch)
    if store is None:
        store = run.stores[call.branch] = Store(capacity, sized)
    found = Peaks(fresh)
    if peaks.host is None or found.host is None:
        _remember_unseen(run, call, point, fresh, rows, peaks, found)
        return
    batch = run.info.layout.rows
    names: Sequence[int] = range(batch) if rows is None else rows
    good = []
    for place, (row, peak) in enumerate(zip(names, found.host, strict=True)):
        if not math.isfinite(peaks.host[row]):
            _forget(run, call.branch, row, reasons.NON_FINITE_INPUT, call.t)
        elif not math.isfinite(peak):
            _forget(run, call.branch, row, reasons.NON_FINITE_OUTPUT, call.t)
        else:
            good.append(place)
    if run.not_finite:
        for place in good:
            run.not_finite.pop((call.branch, names[place]), None)
    if len(good) == len(names):
        store.push(fresh, call.t, point, rows, batch)
    elif good:
        kept = fresh.index_select(0, index_on(good, fresh.device))
        store.push(kept, call.t, point, [names[place] for place in good], batch)


def _remember_unseen(
    run: Run, call: Call, point: int, fresh: Tensor, rows: Sequence[int] | None, peaks: Peaks, found: Peaks
) -> None:
    """Store an evaluation on an accelerator without waiting to see whether it is finite.

    The device puts the row's last finite value in the place of one that is not, and the next read by the policy, if
    it reads at all, drops the row. With a policy that never reads, a row whose first output is not finite has nothing
    to put in its place: it is handed out as the model returned it.
    """
    store, batch = run.stores[call.branch], run.info.layout.rows
    chosen = peaks.values if rows is None else peaks.values.index_select(0, index_on(rows, peaks.values.device))
    both = torch.maximum(chosen.float(), found.values.float())
    healed = fresh
    if store.history:
        before = store.history[0].output
        before = before if rows is None else before.index_select(0, index_on(rows, before.device))
        if before.shape == fresh.shape and before.dtype == fresh.dtype:
            healed = torch.where(torch.isfinite(both).reshape(-1, *[1] * (fresh.ndim - 1)), fresh, before)
    store.push(healed, call.t, point, rows, batch)
    names = list(range(batch)) if rows is None else list(rows)
    for row in names:
        run.not_finite.pop((call.branch, row), None)
    replaced = set(names)
    run.pending = [p for p in run.pending if p.branch != call.branch or not replaced.issuperset(p.rows)]
    run.pending.append(Pending(both, call.branch, names, point, call.t))


def _forget(run: Run, branch: str, row: int, why: str, t: float) -> None:
    run.stores[branch].drop((row,))
    run.not_finite[branch, row] = why
    note = f"{why} at t={t:g}, not remembered"
    if note not in run.notes:
        run.notes.append(note)
