"""Serving one place of one call: the one control flow of every policy and every way in.

Form the step, ask the policy, evaluate or substitute, tell the policy, record.

It is written as *reverse communication*: a generator that yields what it wants to have evaluated and is sent the
result. It cannot call a function instead: a place inside the network is reached in the middle of the model's own
forward, and what is asked for arrives only when that has run on.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.base.host import index_on
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.policy import Decision
from cachepolicies.engine import check
from cachepolicies.engine.audit import audited, verified
from cachepolicies.engine.call import EVERY_ROW, Arrival, EvaluationRequest, Exchange
from cachepolicies.engine.correct import corrected
from cachepolicies.engine.memory import Evaluated
from cachepolicies.engine.record import record
from cachepolicies.engine.stand_in import StandIn, stand_in

if TYPE_CHECKING:
    from cachepolicies.engine.engine import ServedCall


def served_place(served: ServedCall, arrival: Arrival) -> Exchange:
    """Serve one place of a call; see `ServedCall.exchange`."""
    policy, run, call = served.engine.policy, served.run, served.call
    key, group = served.key(arrival.place), served.group(arrival.place)
    step = served.step(arrival)
    followed = group.follows(call.t, key)
    wanted = followed or check.decided(policy, step, group.state)
    if followed is None:
        group.point, group.t, group.served = run.next_point(), call.t, set()
        group.branch = call.branch
    # Nothing is cached for a policy that never reuses, and there is nothing to look at.
    decision = check.sound(run, group, call, key, wanted) if served.engine.reuses else wanted
    answer = yield from _carried_out(served, arrival, group.point, decision)
    if followed is None:
        group.conclude(decision, policy.observe(step, decision, answer.output, group.state))
    group.served.add(key)
    if served.engine.reuses and call.full is None:
        run.memory.note_passed(key, call.t, answer.output)
    if served.engine.observes_places and group.branch == call.branch:
        group.state = policy.observe_place(step, arrival.place, decision, answer.output, group.state)
    if served.engine.watch is not None:
        served.engine.watch.served(step, decision, answer.output)
    computed = None
    if served.verifies(arrival.place, decision):
        computed = yield from verified(step, decision, answer.output)
        group.state = policy.verify(step, arrival.place, answer.output, computed, group.state)
    fraction, audit = served.engine.settings.audit, None
    if fraction:
        audit = yield from audited(fraction, served.request.draw, step, decision, answer.output, computed)
    served.request.trace.records.append(
        record(
            step,
            decision,
            answer,
            number=served.number,
            place=arrival.place,
            branch=call.branch,
            led=followed is None,
            share=served.engine.shares.get(arrival.place),
            audit=audit,
            verified=computed is not None,
        )
    )
    return answer.output


def _carried_out(
    served: ServedCall, arrival: Arrival, point: int, decision: Decision
) -> Generator[EvaluationRequest, Tensor, StandIn]:
    """Evaluate the rows that are to be evaluated, and put the substitute in the place of the others."""
    layout = served.run.info.layout
    if not any(decision.reuse):
        output = check.evaluated((yield EVERY_ROW), layout.rows)
        return StandIn(_evaluated(served, arrival, point, output, None))
    key = served.key(arrival.place)
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
        handed_on = _evaluated(served, arrival, point, fresh, rows)
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


def _evaluated(served: ServedCall, arrival: Arrival, point: int, fresh: Tensor, rows: list[int] | None) -> Tensor:
    """Remember an evaluation and return what flows on: itself, unless the substitute corrects it."""
    substitute, memory, key = served.engine.substitute, served.run.memory, served.key(arrival.place)
    before = memory.store(key)
    clipped = None if before is None else before.clipped
    _remember(served, arrival, point, fresh, rows)
    if not substitute.corrects or before is None:
        return fresh
    return corrected(substitute, served.context(arrival), memory.held(key).history, clipped, fresh, rows)


def _remember(served: ServedCall, arrival: Arrival, point: int, fresh: Tensor, rows: list[int] | None) -> None:
    if not served.engine.reuses or served.call.full is not None:
        return
    key, memory = served.key(arrival.place), served.run.memory
    entered = arrival.input if served.engine.substitute.wants_input else None
    signals = {name: arrival.signals[name] for name in served.engine.kept_signals}
    # Where samples part, rows of what is kept are written on later, and a policy may hold it.
    owned = arrival.read_only and rows is None and served.run.info.decisions == 1
    branches = _other_branches(served, arrival, fresh, rows)
    memory.remember(Evaluated(key, served.call.t, point, fresh, rows, entered, owned, signals, branches))
    if rows is None:
        memory.note_present(key, served.call.t, fresh)
