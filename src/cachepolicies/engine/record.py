"""Recording: what was done at one place of one call, as an entry of the trace."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cachepolicies.base.host import visible
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.policy import Decision
from cachepolicies.engine.call import Call
from cachepolicies.engine.stand_in import StandIn
from cachepolicies.engine.trace import AuditRecord, CallRecord, Clipped


def record(
    call: Call,
    decision: Decision,
    served: StandIn,
    *,
    layout: Layout,
    index: int | None,
    number: int,
    place: str,
    led: bool,
    share: float | None,
    audit: AuditRecord | None,
    verified: bool = False,
) -> CallRecord:
    """Return the entry of one place of one call at which something was reused.

    Args:
        call: that was served.
        decision: as carried out.
        served: what was handed on.
        layout: rows of the batch and the decisions they follow.
        index: step of the run that the call lies in, or ``None``.
        number: of the call in its run.
        place: of the site.
        led: whether the decision was taken here, and not at another branch or place.
        share: of the uncached work of a call that a reuse of this place skips; ``None`` where it is not known.
        audit: if there was one.
        verified: whether what was reused was computed all the same.
    """
    reuse = decision.reuse
    evaluated = tuple(not kept for kept in reuse)
    order = served.order
    return CallRecord(
        t=call.t,
        branch=call.branch,
        evaluated=evaluated,
        reason=decision.reason,
        score=decision.score,
        tolerance=decision.tolerance,
        led=led,
        index=index,
        model_called=any(evaluated),
        audit=audit,
        order=None if order is None else _order_of_decisions(layout, reuse, order),
        clipped=_clipped_decisions(layout, reuse, order, served.clipped),
        call=number,
        place=place,
        saved=0.0 if verified else None if share is None else share * sum(reuse) / len(reuse),
        verified=verified,
    )


def _order_of_decisions(layout: Layout, reuse: Sequence[bool], order: tuple[int, ...]) -> tuple[int | None, ...]:
    """Return the order of each decision, the lowest of its rows; ``None`` where it was to evaluate."""
    lowest = order
    if layout.decisions != layout.rows:
        lowest = tuple(min(order[row] for row in layout.rows_of(d)) for d in range(layout.decisions))
    return lowest if all(reuse) else tuple(one if kept else None for one, kept in zip(lowest, reuse, strict=True))


def _clipped_decisions(
    layout: Layout, reuse: Sequence[bool], order: tuple[int, ...] | None, clipped: Tensor | None
) -> Clipped:
    """Return which decisions had a row clipped; a function that finds out, so that nobody waits for the device now."""
    if not any(reuse):
        return None
    if clipped is None:
        return (False,) * len(reuse)

    def find() -> tuple[bool, ...]:
        # A row that was held anyway was not clipped, whatever rounding says of its size.
        rows = [replaced and (order is None or order[row] > 0) for row, replaced in enumerate(clipped.tolist())]
        return tuple(kept and any(rows[row] for row in layout.rows_of(d)) for d, kept in enumerate(reuse))

    return find() if visible(clipped) else find
