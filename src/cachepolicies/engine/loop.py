"""Serving one place of one call: the one control flow of every policy and every way in.

Form the step, ask the policy, evaluate or substitute, tell the policy, record.

It is written as *reverse communication*: a generator that yields what it wants to have evaluated and is sent the
result. It cannot call a function instead: a place inside the network is reached in the middle of the model's own
forward, and what is asked for arrives only when that has run on.

Where a place is a module, and all of it is to be evaluated, a site with many of them does without the generator: it
asks (`ServedCall.ask`), runs the module, and hands over what that returned (`ServedCall.take`). The generator is made
of the same two.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.base.host import index_on
from cachepolicies.base.layout import Layout
from cachepolicies.engine import check
from cachepolicies.engine.audit import audited, verified
from cachepolicies.engine.call import EVERY_ROW, WHOLE, Arrival, EvaluationRequest, Exchange
from cachepolicies.engine.correct import corrected
from cachepolicies.engine.memory import Evaluated
from cachepolicies.engine.record import record
from cachepolicies.engine.stand_in import StandIn, stand_in
from cachepolicies.engine.turn import Turn

if TYPE_CHECKING:
    from cachepolicies.engine.engine import ServedCall


def served_place(served: ServedCall, arrival: Arrival) -> Exchange:
    """Serve one place of a call; see `ServedCall.exchange`."""
    return (yield from carried_out(served, served.ask(arrival)))


def carried_out(served: ServedCall, turn: Turn) -> Exchange:
    """Carry out what was decided on a place."""
    if turn.whole:
        return served.take(turn, (yield EVERY_ROW))
    decision = turn.decision
    answer = yield from _substituted(served, turn)
    served.conclude(turn, answer.output)
    fraction, audit, computed = served.engine.settings.audit, None, None
    verifies = served.verifies(turn.arrival.place, decision)
    if verifies or fraction:
        step = served.step(turn.arrival) if turn.step is None else turn.step
        if verifies:
            computed = yield from verified(step, decision, answer.output)
            group, place = turn.group, turn.arrival.place
            group.state = served.engine.policy.verify(step, place, answer.output, computed, group.state)
        if fraction:
            audit = yield from audited(fraction, served.request.draw, step, decision, answer.output, computed)
    served.request.trace.records.append(
        record(
            served.call,
            decision,
            answer,
            layout=served.run.info.layout,
            index=served.index,
            number=served.number,
            place=turn.arrival.place,
            led=turn.led,
            share=served.engine.shares.get(turn.arrival.place),
            audit=audit,
            verified=computed is not None,
        )
    )
    return answer.output


def _substituted(served: ServedCall, turn: Turn) -> Generator[EvaluationRequest, Tensor, StandIn]:
    """Evaluate the rows that are to be evaluated, and put the substitute in the place of the others."""
    layout, arrival, decision, key = served.run.info.layout, turn.arrival, turn.decision, turn.key
    store = served.run.memory.held(key)
    rows = layout.select([not reuse for reuse in decision.reuse])
    fresh: Tensor | None = None
    copies: Mapping[str, Tensor] | None = None
    if rows and layout.apart:  # what was evaluated of the batch may be what the rest is made from
        fresh = check.evaluated((yield EvaluationRequest(tuple(rows))), len(rows))
        copies = _evaluated_copies(layout, fresh, rows)
    answer = stand_in(served.engine.substitute, served.context(arrival, copies), store, read_only=arrival.read_only)
    output = answer.output
    if rows:
        if fresh is None:
            fresh = check.evaluated((yield EvaluationRequest(tuple(rows))), len(rows))
        if fresh.shape[1:] != output.shape[1:] or fresh.dtype != output.dtype:
            raise InputError(
                f"the denoiser returned {tuple(fresh.shape)} {fresh.dtype} for {len(rows)} of {layout.rows} rows, and "
                f"{tuple(output.shape)} {output.dtype} before; use per_sample=False if its output depends on the "
                "size of the batch"
            )
        handed_on = evaluated(served, turn, fresh, rows)
        output = output.index_copy(0, index_on(rows, output.device), handed_on)
    if answer.clipped is not None:
        store.note_clipped(answer.clipped, rows)
    served.run.memory.note_present(key, served.call.t, output)
    return StandIn(output, answer.order, answer.clipped)


def _evaluated_copies(layout: Layout, fresh: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return what was evaluated of every copy of the samples, ``(B, ...)``, by its name; ``nan`` where nothing was."""
    seen = fresh.detach().new_full((layout.rows, *fresh.shape[1:]), math.nan)
    seen.index_copy_(0, index_on(rows, fresh.device), fresh.detach())
    each = layout.rows // layout.copies
    there = {layout.copy_names[row // each] for row in rows}
    return {name: output for name, output in layout.by_copy(seen).items() if name in there}


def _other_branches(served: ServedCall, arrival: Arrival, fresh: Tensor, rows: list[int] | None) -> dict[str, Tensor]:
    """Return what other branches returned at this t, as it is kept with an evaluation."""
    substitute, layout = served.engine.substitute, served.run.info.layout
    if not substitute.keeps_branches:
        return {}
    others = dict(served.run.memory.present(served.key(arrival.place), served.call.t))
    if not layout.apart:
        return others
    return {**others, **(layout.by_copy(fresh) if rows is None else _evaluated_copies(layout, fresh, rows))}


def evaluated(served: ServedCall, turn: Turn, fresh: Tensor, rows: list[int] | None) -> Tensor:
    """Remember an evaluation and return what flows on: itself, unless the substitute corrects it."""
    substitute, memory, key = served.engine.substitute, served.run.memory, turn.key
    before = memory.store(key)
    clipped = None if before is None else before.clipped
    _remember(served, turn, fresh, rows)
    # Inside of a network the forward goes on with what its modules returned.
    if not substitute.corrects or before is None or turn.arrival.place != WHOLE:
        return fresh
    return corrected(substitute, served.context(turn.arrival), memory.held(key).history, clipped, fresh, rows)


def _remember(served: ServedCall, turn: Turn, fresh: Tensor, rows: list[int] | None) -> None:
    if not served.engine.reuses or served.call.full is not None:
        return
    arrival, key, memory = turn.arrival, turn.key, served.run.memory
    entered = arrival.input if served.engine.substitute.wants_input else None
    signals = {name: arrival.signals[name] for name in served.engine.kept_signals}
    # Where samples part, rows of what is kept are written on later, and a policy may hold it.
    owned = arrival.read_only and rows is None and served.run.info.decisions == 1
    branches = _other_branches(served, arrival, fresh, rows)
    memory.remember(Evaluated(key, served.call.t, turn.group.point, fresh, rows, entered, owned, signals, branches))
    if rows is None:
        memory.note_present(key, served.call.t, fresh)
