"""The life of a request: one generation in flight, in which runs begin and end."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachepolicies.base.errors import CacheWarning, InputError, NeedsError
from cachepolicies.base.layout import Layout, equal_parts
from cachepolicies.contracts.policy import CachePolicy
from cachepolicies.contracts.reasons import EngineReason, RestartCause
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.substitute import Substitute, order_of
from cachepolicies.engine.call import Call, Declaration, EngineSettings
from cachepolicies.engine.memory import Memory
from cachepolicies.engine.run import Run, check_declared, check_origin
from cachepolicies.engine.trace import CallRecord, Trace

if TYPE_CHECKING:
    from cachepolicies.engine.choice import Choice

FEW_STEPS = 5
"""Runs shorter than this have too few steps to gain from reuse."""


_TOLD = (EngineReason.SIDE_BY_SIDE, EngineReason.WRITES_MEMORY, EngineReason.STEPS_REJECTED)
"""Reasons for evaluating all of a run of which was warned by themselves."""

_AS_ONE = "the site has several places in a call: the samples of a batch decide as one"


class Request:
    """One generation in flight: what was said of it, its run and its trace. It serves one caller at a time.

    A run ends when it is told to, when t jumps back up, or when shape, dtype, device or batch change.

    Attributes:
        engine: serves the run in progress, or served the last one; chosen when a run begins.
        trace: the record of the run in progress, or of the last one.
        run: what is known between the calls of the run in progress; ``None`` before its first call.
        declaration: what was said of the run in progress, if it was declared.
        draw: of the calls to audit.
    """

    def __init__(self, choice: Choice) -> None:
        self.engine = choice.latest
        self.run: Run | None = None
        self.declaration: Declaration | None = None
        self.draw = random.Random(self.settings.audit_seed)
        self.trace = self._new_trace()
        self.calls = 0
        self._choice = choice
        self._rises = 0

    @property
    def policy(self) -> CachePolicy:
        """The policy of the run in progress, or of the last one."""
        return self.engine.policy

    @property
    def substitute(self) -> Substitute:
        """The substitute of the run in progress, or of the last one."""
        return self.engine.substitute

    @property
    def settings(self) -> EngineSettings:
        """How batches and branches are treated."""
        return self.engine.settings

    def begin(self, declaration: Declaration | None) -> None:
        """Begin a run; it lasts until the next `begin` or `end`.

        Args:
            declaration: what is known of it, or ``None`` to find out from the calls alone.
        """
        self.end()
        self.declaration = declaration
        self._renew_trace()

    def end(self) -> None:
        """End the run in progress, if there is one, and forget it. The trace stays."""
        self._close()
        self.declaration = None

    def finish(self) -> None:
        """End a declared run that came to its end: say if it was pointless, and forget it whatever comes of that."""
        try:
            self._conclude()
        finally:
            self.run, self.declaration = None, None

    def reset(self) -> None:
        """Forget the run in progress. The trace stays."""
        self.run = None

    def begin_again(self) -> None:
        """Forget a run of which only the first call was begun, as if it had not been."""
        self.run, self.calls = None, self.calls - 1

    def enter(self, call: Call) -> Run:
        """Return the run that a call belongs to, a new one where it cannot belong to that in progress.

        Args:
            call: where the denoiser is called.

        Raises:
            RunError: the call does not fit the declared run, or guidance branches are not told apart.
            NeedsError: the policy needs the run length, and the run was not declared.
            InputError: the batch is no multiple of the guidance rows; or these decide apart, which the site cannot do.
        """
        run, cause = self.run, None
        if run is not None:
            if self.engine.looks:
                run.refuse_unlabelled_branches(call)
            restart = run.restart_cause(call)
            if restart is not None and restart[0] is RestartCause.T_WENT_BACK and run.is_rejection(call.t):
                self._see_as_it_is(run, call)
                restart = None
            if restart is None:
                if self.declaration is None:
                    check_origin(run, call)
                    self._follow_expected(run, call)
                return run
            cause, sentence = restart
        declaration = self.declaration
        if declaration is not None:
            if not self.trace.records:
                check_declared(declaration, call.t)
            if cause is not None:
                self.trace.notes.append(f"the run restarted at call {self.calls}: {sentence}")
        else:
            self._note_rising_t(run, call)
            self._close()
        chosen = self._choice.choose(call, declaration)
        self.engine = chosen.engine
        known = declaration or chosen.expected
        if known is None and (self.policy.needs.run_length or self.substitute.corrects):
            raise _run_length_is_missing(self.policy, self.substitute)
        if declaration is None:
            self._renew_trace()
        else:
            self.trace.policy, self.trace.substitute = self.policy.name, self.substitute.name
            self.trace.order = order_of(self.substitute)
        reshaped = run is not None and cause is RestartCause.SHAPE_CHANGED
        lost = dict.fromkeys(run.last_calls, EngineReason.SHAPE_CHANGED) if run is not None and reshaped else {}
        self.trace.notes.extend(note for note in chosen.notes if note not in self.trace.notes)
        self.run = self._begin_run(call, known, lost, expected=declaration is None and known is not None)
        return self.run

    def next_call(self) -> int:
        """Return the number of a new call in its run."""
        self.calls += 1
        return self.calls - 1

    def _see_as_it_is(self, run: Run, call: Call) -> None:
        """Evaluate the rest of a run whose solver controls its error."""
        run.full = EngineReason.STEPS_REJECTED
        if self.policy.reuses:
            self.warn_once(
                "steps rejected",
                f"t went back from {run.last_t:g} to {call.t:g} within a step: a solver that controls its error has to "
                "see the model as it is, and the rest of the run is evaluated. Use fixed steps to gain from a cache",
            )

    def pass_by(self, t: float, branch: str, *, expected: bool) -> None:
        """Note a call that is handed a memory of keys and values: it runs as it is, and nothing of it is remembered.

        Args:
            t: noise level.
            branch: that was called.
            expected: whether the model's adapter says that some calls do, so that there is nothing to warn of.
        """
        if self.policy.reuses and not expected:
            self.warn_once(
                "memory",
                "calls that come with a memory of keys and values are evaluated: their blocks write what later calls "
                "read",
            )
        reason = EngineReason.WRITES_MEMORY
        count = 1 if self.run is None else self.run.info.decisions
        self.trace.records.append(
            CallRecord(
                t, branch, (True,) * count, (reason,) * count, None, None, True, None, True, call=self.next_call()
            )
        )

    def _follow_expected(self, run: Run, call: Call) -> None:
        """Evaluate from here on where an undeclared run leaves the timesteps that were expected of it."""
        if run.expected and not run.as_expected(call.t):
            run.expected = False
            self.engine = self._choice.unexpected(self.engine)
            self.trace.notes.append(
                f"t={call.t:g} is not where runs that begin like this went before: evaluated from here on; declare the "
                "run, `with denoiser.run(timesteps=...)`, where step counts change"
            )

    def _begin_run(
        self, call: Call, declaration: Declaration | None, lost: dict[str, EngineReason], expected: bool
    ) -> Run:
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
        apart = copies > 1 and self.policy.by_branch and self.policy.reuses
        if apart and not self.engine.parts_rows:
            raise InputError(
                f"policy {self.policy.name!r} decides for every guidance branch apart, and {copies} of them are in one "
                "batch here, of which this site cannot evaluate a part; use site='output'"
            )
        info = RunInfo(
            first_t=call.t,
            timesteps=None if declaration is None else declaration.timesteps,
            layout=Layout(
                x.shape[0], copies, settings.per_sample and self.engine.parts_rows and not call.as_one, apart
            ),
            shape=tuple(x.shape),
            dtype=x.dtype,
            device=x.device,
            profile=self.engine.profile,
            announced_steps=None if declaration is None else declaration.announced_steps,
        )
        self.draw = random.Random(settings.audit_seed)
        for note in (*self.engine.notes(info), *self._remarks(info)):
            if note not in self.trace.notes:
                self.trace.notes.append(note)
        memory = Memory(self.substitute, x.shape[0], self.trace.notes)
        return Run(info, memory, lost, call.origin, expected=expected)

    def _remarks(self, info: RunInfo) -> Sequence[str]:
        if not self.policy.reuses:
            return ()
        as_one = self.settings.per_sample and not self.engine.parts_rows and info.layout.rows > info.layout.copies
        return (*self.substitute.notes, *([_AS_ONE] if as_one else []))

    def _new_trace(self) -> Trace:
        return Trace(self.policy.name, self.substitute.name, order=order_of(self.substitute))

    def _renew_trace(self) -> None:
        self.trace, self.calls = self._new_trace(), 0

    def _close(self) -> None:
        if self.run is not None:
            self._conclude()
            self.run = None

    def _conclude(self) -> None:
        """Say if the run was pointless, and tell who looked on that it is over."""
        if self.run is not None and self.engine.watch is not None:
            self.engine.watch.finished()
        self._warn_if_pointless()

    def _warn_if_pointless(self) -> None:
        trace, declaration = self.trace, self.declaration
        if not self.policy.reuses or len({record.t for record in trace.records}) < 2:
            return
        steps = None if declaration is None else declaration.num_steps
        if steps is not None and steps < FEW_STEPS:
            self.warn_once("few steps", f"a run of {steps} steps has too few to gain much from reuse")
        elif all(all(record.evaluated) for record in trace.records):
            reasons = trace.reasons()
            if any(reason.text in reasons for reason in _TOLD):
                return
            why = ", ".join(f"{reason} ({n})" for reason, n in list(reasons.items())[:3])
            self.warn_once("no reuse", f"nothing was reused in a run of {trace.calls} calls: {why}{_nearest(trace)}")

    def _note_rising_t(self, run: Run | None, call: Call) -> None:
        """Warn where every new t begins a new run: without a declaration t is taken to fall."""
        rose = run is not None and call.t > run.last_t == run.info.first_t
        self._rises = self._rises + 1 if rose else 0
        if self._rises == FEW_STEPS and self.policy.reuses:
            self.warn_once(
                "rising t",
                "t rises from call to call, and each rise begins a new run; declare the rising timesteps with "
                "`denoiser.run(timesteps=...)`",
            )

    def warn_once(self, kind: str, message: str) -> None:
        """Warn of something the first time that it happens, and note it in the trace."""
        if kind not in self.engine.warned:
            self.engine.warned.add(kind)
            self.trace.notes.append(message)
            warnings.warn(f"{self.policy.name}: {message}", CacheWarning, stacklevel=4)


def _run_length_is_missing(policy: CachePolicy, substitute: Substitute) -> NeedsError:
    user, name = ("policy", policy.name) if policy.needs.run_length else ("substitute", substitute.name)
    return NeedsError(
        f"{user} {name!r} with these settings needs the run length; call the denoiser inside "
        "`with denoiser.run(timesteps=...):`. In place, a pipeline's scheduler tells it; for a module alone: "
        "`with enabled.run(timesteps=...):`, or `model.cache_context(name, step_index=, num_inference_steps=)`"
    )


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
