"""The engine: the one control flow that serves every policy and every way in.

Form the step, ask the policy, evaluate or substitute, tell the policy, record.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies._errors import CacheWarning, InputError, NeedsError, PolicyError, RunError
from cachepolicies._guards import Peaks, clip, guard, reader, remember
from cachepolicies._host import index_on, visible
from cachepolicies._layout import Layout, equal_parts
from cachepolicies._policy import CachePolicy, Decision
from cachepolicies._reasons import SHAPE_CHANGED
from cachepolicies._run import SHARED, Call, Declaration, Group, Run, check_declared
from cachepolicies._step import RunInfo, Step
from cachepolicies._store import Store
from cachepolicies._substitute import Extrapolation, Guarded, Noted, Prediction, Substitute
from cachepolicies._trace import AuditRecord, CallRecord, Clipped, Trace
from cachepolicies._units import difference, row_rms
from cachepolicies.profiles.schema import Profile

Evaluate = Callable[["Sequence[int] | None", bool], Tensor]
"""Evaluates the model on some rows of the batch, or on all of them (``None``), and returns ``(rows, ...)``.

The second argument says whether it is only an audit, of which nothing may be kept.
"""


@frozen
class Wanted:
    """An evaluation that the engine asks for.

    Attributes:
        rows: the rows to evaluate, ``None`` for the whole batch.
        audit: whether it is only to audit: nothing of it may be kept or handed out.
    """

    rows: tuple[int, ...] | None
    audit: bool = False


@frozen(eq=False)
class _Served:
    """What a call is answered with, and what the trace has to know of it.

    Attributes:
        output: ``(B, ...)``.
        order: order of the substitute in every row; ``None`` where nothing was substituted or it has none.
        clipped: ``(B,)`` bool, rows in which the guard replaced the extrapolation; ``None`` where none was.
    """

    output: Tensor
    order: tuple[int, ...] | None = None
    clipped: Tensor | None = None


Exchange = Generator[Wanted, Tensor, Tensor]
"""One call being served: yields what has to be evaluated, takes ``(rows, ...)``, and returns ``(B, ...)``."""

FEW_STEPS = 5
"""Runs shorter than this have too few steps to gain from reuse."""


@frozen
class EngineSettings:
    """How the engine treats batches and branches.

    Attributes:
        copies: how often each sample stands in the batch (2 for a batch doubled for guidance), or ``None`` to see it
            from the latent that a run begins with: as many equal parts as it has.
        per_sample: whether every sample decides for itself.
        shared_branches: whether branches at the same t follow one decision.
        audit: fraction of the reused calls that is evaluated all the same.
        audit_seed: seed of the choice of audited calls.
    """

    copies: int | None = 1
    per_sample: bool = True
    shared_branches: bool = True
    audit: float = 0.0
    audit_seed: int = 0


class Engine:
    """Runs one policy over the calls of one denoiser. Not for concurrent use by several threads."""

    def __init__(
        self,
        policy: CachePolicy,
        substitute: Substitute,
        profile: Profile | None,
        settings: EngineSettings,
        notes: Callable[[RunInfo], Sequence[str]] = lambda info: (),
    ) -> None:
        self.policy = policy
        self.substitute = substitute
        self.profile = profile
        self.settings = settings
        self._order = substitute.order if isinstance(substitute, Extrapolation) else None
        # An extrapolation of order 0 is a remembered output itself: there is nothing to guard.
        self._guarded = isinstance(substitute, Guarded) and self._order != 0
        self._factor = substitute.guard if isinstance(substitute, Guarded) else None
        self.trace = self._new_trace()
        self._notes = notes
        self._run: Run | None = None
        self._declaration: Declaration | None = None
        self._audit = random.Random(settings.audit_seed)
        self._warned: set[str] = set()
        self._rises = 0

    @property
    def declaration(self) -> Declaration | None:
        """What was said of the run in progress, if it was declared."""
        return self._declaration

    @contextmanager
    def declared(self, declaration: Declaration) -> Iterator[Trace]:
        """Declare the run that happens inside the context; nothing of it is remembered afterwards.

        Raises:
            RunError: a declared run is in progress already.
        """
        if self._declaration is not None:
            raise RunError("a declared run is in progress on this denoiser; leave it before starting another")
        self.begin(declaration)
        try:
            yield self.trace
            self._warn_if_pointless()
        finally:
            self._declaration = None
            self.reset()

    def begin(self, declaration: Declaration | None) -> None:
        """Begin a run whose end nobody announces: it lasts until the next `begin` or `end`.

        Args:
            declaration: what is known of it, or ``None`` to find out from the calls alone.
        """
        self.end()
        self._declaration = declaration
        self.trace = self._new_trace()

    def end(self) -> None:
        """End the run in progress, if there is one, and forget it. The trace stays."""
        self._close()
        self._declaration = None

    @property
    def slices(self) -> bool:
        """Whether some rows of the batch may be evaluated without the others; known once a run has begun."""
        return self.policy.reuses and self._run is not None and self._run.info.decisions > 1

    def follows(self, call: Call) -> bool:
        """Whether a call will follow the decision of another branch at the same t, without asking the policy."""
        run = self._run
        if run is None or run.restart_cause(call) is not None:
            return False
        group = run.groups.get(SHARED if self.settings.shared_branches else call.branch)
        return group is not None and group.t == call.t and call.branch not in group.served

    def reset(self) -> None:
        """Forget the run in progress. The trace stays."""
        self._run = None

    def call(self, call: Call, evaluate: Evaluate) -> Tensor:
        """Serve one call: return the model's output, or what stands in for it, row by row.

        Args:
            call: where the denoiser is called.
            evaluate: evaluates the model there.

        Returns:
            ``(B, ...)`` the caller may change it in place. If every row was evaluated it is the model's own tensor.

        Raises:
            InputError, RunError, NeedsError, PolicyError: see their messages. After any exception, from the model
                too, nothing of the run is remembered.
        """
        exchange = self.exchange(call)
        answer: Tensor | None = None
        try:
            while True:
                try:
                    wanted = next(exchange) if answer is None else exchange.send(answer)
                except StopIteration as done:
                    output: Tensor = done.value
                    return output
                answer = evaluate(wanted.rows, wanted.audit)
        finally:
            exchange.close()

    def exchange(self, call: Call) -> Exchange:
        """Serve one call by reverse communication, for a caller that evaluates in its own time.

        `call` is this with a function that evaluates. A site inside the model cannot give one: the model's own forward
        is under way, and what is asked for arrives when it has run on. Closed before it has returned, the exchange
        counts as failed, and nothing of the run is remembered.
        """
        try:
            return (yield from self._serve(call))
        except BaseException:
            self.reset()
            raise

    def _serve(self, call: Call) -> Exchange:
        peaks = Peaks(call.x) if self.policy.reuses else None
        run = self._enter(call, peaks)
        group = self._group(run, call.branch)
        info = run.info
        index = info.index(call.t) if call.index is None else call.index
        step = Step(call.x.detach(), call.t, call.branch, index, info, reader(run), call.signals)
        followed = group.decision if group.t == call.t and call.branch not in group.served else None
        if followed is None:
            wanted = self._decide(step, group.state)
            group.point, group.t, group.served = run.next_point(), call.t, set()
        else:
            wanted = followed
        decision = wanted if peaks is None else guard(run, group, call, wanted, peaks)
        served = yield from self._carry_out(run, call, group.point, decision, peaks)
        output = served.output
        if followed is None:
            group.decision = decision
            group.state = self.policy.observe(step, decision, output, group.state)
            for d, reuse in enumerate(decision.reuse):
                if not reuse:
                    group.refreshed[d] = group.point
        group.served.add(call.branch)
        run.remember(call, None if peaks is None else peaks.values)
        audit = yield from self._audited(info.layout, call, decision, output)
        self._record(info.layout, call, decision, followed is None, step.index, audit, served)
        return output

    # -- runs ---------------------------------------------------------------------------------------------------

    def _enter(self, call: Call, peaks: Peaks | None) -> Run:
        run, cause = self._run, None
        if run is not None:
            if peaks is not None:
                run.refuse_unlabelled_branches(call, peaks.values)
            cause = run.restart_cause(call)
            if cause is None:
                return run
        declaration = self._declaration
        if declaration is not None:
            if not self.trace.records:
                check_declared(declaration, call.t)
            if cause is not None:
                self.trace.notes.append(f"the run restarted at call {self.trace.calls}: {cause}")
        elif self.policy.needs.run_length:
            raise NeedsError(
                f"policy {self.policy.name!r} with these settings needs the run length; call the denoiser inside "
                "`with denoiser.run(timesteps=...):`. In place, a pipeline's scheduler tells it; for a module alone: "
                "`with enabled.run(timesteps=...):`, or `model.cache_context(name, step_index=, num_inference_steps=)`"
            )
        else:
            self._note_rising_t(run, call)
            self._close()
            self.trace = self._new_trace()
        reshaped = frozenset(run.last_calls) if run is not None and cause == SHAPE_CHANGED else frozenset()
        self._run = self._begin(call, declaration, reshaped)
        return self._run

    def _begin(self, call: Call, declaration: Declaration | None, reshaped: frozenset[str]) -> Run:
        x, settings = call.x, self.settings
        if settings.copies is not None:
            copies = settings.copies
        else:
            copies = equal_parts(x) if call.copies is None else call.copies()
        if x.shape[0] % copies:
            raise InputError(
                f"x has {x.shape[0]} rows, which is no multiple of the {copies} guidance rows of a sample; "
                'use cfg="separate", or pass the doubled batch'
            )
        info = RunInfo(
            first_t=call.t,
            timesteps=None if declaration is None else declaration.timesteps,
            layout=Layout(x.shape[0], copies, settings.per_sample),
            shape=tuple(x.shape),
            dtype=x.dtype,
            device=x.device,
            profile=self.profile,
            announced_steps=None if declaration is None else declaration.announced_steps,
        )
        self._audit = random.Random(settings.audit_seed)
        remarks = self.substitute.notes if isinstance(self.substitute, Noted) and self.policy.reuses else ()
        for note in (*self._notes(info), *remarks):
            if note not in self.trace.notes:
                self.trace.notes.append(note)
        return Run(info, self.trace.notes, reshaped)

    def _group(self, run: Run, branch: str) -> Group:
        key = SHARED if self.settings.shared_branches else branch
        group = run.groups.get(key)
        if group is None:
            group = run.groups[key] = Group(self.policy.start(run.info), [-1] * run.info.decisions)
        return group

    def _new_trace(self) -> Trace:
        return Trace(self.policy.name, self.substitute.name, order=self._order)

    def _close(self) -> None:
        if self._run is not None:
            self._warn_if_pointless()
            self._run = None

    def _warn_if_pointless(self) -> None:
        trace, declaration = self.trace, self._declaration
        if not self.policy.reuses or len({record.t for record in trace.records}) < 2:
            return
        steps = None if declaration is None else declaration.num_steps
        if steps is not None and steps < FEW_STEPS:
            self._warn("few steps", f"a run of {steps} steps has too few to gain much from reuse")
        elif all(all(record.evaluated) for record in trace.records):
            why = ", ".join(f"{reason} ({n})" for reason, n in list(trace.reasons().items())[:3])
            self._warn("no reuse", f"nothing was reused in a run of {trace.calls} calls: {why}{_nearest(trace)}")

    def _note_rising_t(self, run: Run | None, call: Call) -> None:
        """Warn where every new t begins a new run: without a declaration t is taken to fall."""
        rose = run is not None and call.t > run.last_t == run.info.first_t
        self._rises = self._rises + 1 if rose else 0
        if self._rises == FEW_STEPS and self.policy.reuses:
            self._warn(
                "rising t",
                "t rises from call to call, and each rise begins a new run; declare the rising timesteps with "
                "`denoiser.run(timesteps=...)`",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.trace.notes.append(message)
            warnings.warn(f"{self.policy.name}: {message}", CacheWarning, stacklevel=4)

    # -- deciding -----------------------------------------------------------------------------------------------

    def _decide(self, step: Step, state: object) -> Decision:
        decision = self.policy.decide(step, state)
        if not isinstance(decision, Decision):
            raise PolicyError(f"policy {self.policy.name!r} decided {decision!r}; decide returns a Decision")
        count = step.run.decisions
        for part in ("reuse", "reason", "score", "tolerance"):
            values = getattr(decision, part)
            if values is None and part in ("score", "tolerance"):
                continue
            if not isinstance(values, tuple) or len(values) != count:
                size = f"of length {len(values)}" if isinstance(values, tuple) else f"as a {type(values).__name__}"
                raise PolicyError(
                    f"policy {self.policy.name!r} returned {part} {size}; it is a tuple of {count}, one entry for each "
                    "deciding sample"
                )
            if part in ("score", "tolerance") and any(not isinstance(value, Real) for value in values):
                raise PolicyError(f"policy {self.policy.name!r} returned {part} {values!r}; its entries are numbers")
        if any(type(reuse) is not bool for reuse in decision.reuse):
            raise PolicyError(f"policy {self.policy.name!r} returned reuse {decision.reuse!r}; its entries are bools")
        if any(decision.reuse) and not self.policy.reuses:
            raise PolicyError(f"policy {self.policy.name!r} reuses, but its property `reuses` says that it never does")
        return decision

    # -- carrying out -------------------------------------------------------------------------------------------

    def _carry_out(
        self,
        run: Run,
        call: Call,
        point: int,
        decision: Decision,
        peaks: Peaks | None,
    ) -> Generator[Wanted, Tensor, _Served]:
        layout, batch = run.info.layout, run.info.layout.rows
        if not any(decision.reuse):
            output = _checked((yield Wanted(None)), batch)
            if peaks is not None:
                self._remember(run, call, point, output, None, peaks)
            return _Served(output)
        served = self._substituted(call.t, run.stores[call.branch])
        output = served.output
        rows = layout.select([not reuse for reuse in decision.reuse])
        if rows:
            fresh = _checked((yield Wanted(tuple(rows))), len(rows))
            if fresh.shape[1:] != output.shape[1:] or fresh.dtype != output.dtype:
                raise InputError(
                    f"the denoiser returned {tuple(fresh.shape)} {fresh.dtype} for {len(rows)} of {batch} rows, and "
                    f"{tuple(output.shape)} {output.dtype} before; use per_sample=False if its output depends on the "
                    "size of the batch"
                )
            output = output.index_copy(0, index_on(rows, output.device), fresh)
            if peaks is not None:
                self._remember(run, call, point, fresh, rows, peaks)
        return _Served(output, served.order, served.clipped)

    def _remember(
        self, run: Run, call: Call, point: int, fresh: Tensor, rows: Sequence[int] | None, peaks: Peaks
    ) -> None:
        sized = self._guarded and self._factor is not None
        remember(run, call, point, fresh, rows, peaks, self.substitute.history, sized)

    def _substituted(self, t: float, store: Store) -> _Served:
        """Return the substitute's prediction for all rows, in memory that is not the store's."""
        history = store.history
        predicted = self.substitute.predict(t, history)
        output = predicted.output if isinstance(predicted, Prediction) else predicted
        newest = history[0].output
        if not isinstance(output, Tensor) or (output.shape, output.dtype) != (newest.shape, newest.dtype):
            found = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else repr(output)
            raise PolicyError(
                f"substitute {self.substitute.name!r} predicted {found}; what it stands in for is "
                f"{tuple(newest.shape)} {newest.dtype}"
            )
        order = self._orders(predicted, newest.shape[0])
        clipped = None
        if self._guarded and (order is None or any(order)):
            output, clipped = clip(output, newest, store.sizes, self._factor)
        owned = {refresh.output.untyped_storage().data_ptr() for refresh in history}
        # the sampler may change what it gets in place
        return _Served(output.clone() if output.untyped_storage().data_ptr() in owned else output, order, clipped)

    def _orders(self, predicted: Tensor | Prediction, rows: int) -> tuple[int, ...] | None:
        if not isinstance(predicted, Prediction):
            return (0,) * rows if self._order == 0 else None
        if not isinstance(predicted.order, tuple) or len(predicted.order) != rows:
            raise PolicyError(
                f"substitute {self.substitute.name!r} gave order {predicted.order!r}; it is a tuple of {rows}, one "
                "entry for each row"
            )
        return predicted.order

    # -- recording ----------------------------------------------------------------------------------------------

    def _audited(
        self, layout: Layout, call: Call, decision: Decision, output: Tensor
    ) -> Generator[Wanted, Tensor, AuditRecord | None]:
        """Evaluate a reused call after all, if the draw says so; nothing but the trace learns of it."""
        if not self.settings.audit or not any(decision.reuse) or self._audit.random() >= self.settings.audit:
            return None
        rows = layout.select(decision.reuse)
        devices = [call.x.device] if call.x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            true = _checked((yield Wanted(None if len(rows) == layout.rows else tuple(rows), audit=True)), len(rows))
        held = output if len(rows) == layout.rows else output.index_select(0, index_on(rows, output.device))
        errors = [math.nan] * layout.rows
        for row, error in zip(rows, row_rms(difference(true, held.detach())).tolist(), strict=True):
            errors[row] = error
        return AuditRecord(layout.pool_rms(errors), decision.score if decision.score_is_change else None)

    def _record(
        self,
        layout: Layout,
        call: Call,
        decision: Decision,
        leads: bool,
        index: int | None,
        audit: AuditRecord | None,
        served: _Served,
    ) -> None:
        evaluated = tuple(not reuse for reuse in decision.reuse)
        order = served.order
        self.trace.records.append(
            CallRecord(
                t=call.t,
                branch=call.branch,
                evaluated=evaluated,
                reason=decision.reason,
                score=decision.score,
                tolerance=decision.tolerance,
                led=leads,
                index=index,
                model_called=any(evaluated),
                audit=audit,
                order=None if order is None else _order_of_decisions(layout, decision.reuse, order),
                clipped=_clipped_decisions(layout, decision.reuse, order, served.clipped),
            )
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


def _nearest(trace: Trace) -> str:
    """Return how far the nearest score was from its tolerance, as the end of a sentence."""
    pairs = [
        (score, tolerance)
        for record in trace.records
        for score, tolerance in zip(record.score or (), record.tolerance or (), strict=False)
        if score > tolerance
    ]
    if not pairs:
        return ""
    score, tolerance = min(pairs, key=lambda pair: pair[0] - pair[1])
    return f"; the nearest score was {score:.3g}, against a tolerance of {tolerance:.3g}"


def _checked(output: Tensor, rows: int) -> Tensor:
    if output.ndim < 1 or output.shape[0] != rows:
        raise InputError(
            f"the denoiser returned a tensor of shape {tuple(output.shape)} for {rows} rows; its first dimension is "
            "the batch"
        )
    return output
