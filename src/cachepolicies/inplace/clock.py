"""Where in its run a pipeline is, from its scheduler: which timesteps it visits, and which of them comes now."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from attrs import define, field, frozen
from torch import Tensor

from cachepolicies.base.errors import RunError
from cachepolicies.base.host import DeclaredTimesteps, host_time, rounding_of, visible
from cachepolicies.contracts.adapter import Clock
from cachepolicies.engine.requests import execution

_FORMS: dict[Clock, Callable[[float], float]] = {
    "timestep": lambda t: t,
    "unit": lambda t: t / 1000.0,
    "reversed-unit": lambda t: 1.0 - t / 1000.0,
}

_NEAR_ZERO = 1e-6
"""Absolute slack of a level, for those at or next to zero."""


@frozen
class Position:
    """Where the context of a call says that it is; see ``diffusers``' ``cache_context``.

    Attributes:
        index: step, counted from the start of the pipeline's loop.
        num_steps: length of that loop.
    """

    index: int
    num_steps: int


@define(eq=False)
class PipelineRun:
    """The run that a pipeline's scheduler is set up for.

    Attributes:
        source: the scheduler's own tensor of timesteps; a new one is a new run.
        given: the levels of the run as the model is called with, or ``None`` where the scheduler's timesteps are not
            what it is called with.
        num_steps: entries of the run.
        offset: the first of the scheduler's timesteps that this run visits.
        trusted: whether the scheduler's own count has been seen to agree with the t of a call.
        over: whether it has ended; what comes then is another run, even of the same timesteps.
        owner: the thread or asyncio task that began it.
    """

    source: Tensor
    given: DeclaredTimesteps | None
    num_steps: int
    offset: int
    trusted: bool = False
    over: bool = False
    owner: weakref.ref[Any] = field(factory=lambda: weakref.ref(execution()))

    @property
    def anothers(self) -> bool:
        """Whether another thread or task began it, which is still there."""
        owner = self.owner()
        if owner is None or owner is execution():
            return False
        return owner.is_alive() if isinstance(owner, threading.Thread) else not owner.done()


@define(eq=False)
class PipelineClock:
    """Follows one pipeline's scheduler. Nothing is counted: the scheduler says where it is.

    One clock serves all denoisers of a pipeline: where another takes over in the middle of a run, it is the same run.

    Attributes:
        scheduler: returns the scheduler that the pipeline has now.
        form: how the model's pipelines usually write the noise level.
        guidance: returns whether the pipeline says that it guides now; anything else than a bool: it does not say.
        scale: returns how strongly it guides, ``None`` where it does not say.
        guider: returns the guider of a modular pipeline, ``None`` where there is none.
    """

    scheduler: Callable[[], Any]
    form: Clock = "timestep"
    guidance: Callable[[], Any] = lambda: None
    scale: Callable[[], float | None] = lambda: None
    guider: Callable[[], Any] = lambda: None
    _latest: PipelineRun | None = None

    @property
    def guided(self) -> bool | None:
        """Whether the pipeline guides, ``None`` where it does not say."""
        said = self.guidance()
        return said if isinstance(said, bool) else None

    @property
    def perturbs(self) -> bool:
        """Whether a guider says which passes a step has: the plain ones first, then those with the model changed."""
        return isinstance(getattr(self.guider(), "_step", None), int)

    def guided_position(self) -> Position | None:
        """Return where a modular pipeline's guider says that its loop is, ``None`` where there is none."""
        guider = self.guider()
        index, count = getattr(guider, "_step", None), getattr(guider, "_num_inference_steps", None)
        return Position(index, count) if isinstance(index, int) and isinstance(count, int) else None

    @property
    def latest(self) -> PipelineRun | None:
        """The run that began last."""
        return self._latest

    def timesteps(self) -> Tensor | None:
        """Return the scheduler's tensor of timesteps, ``None`` before it was set up."""
        found = getattr(self.scheduler(), "timesteps", None)
        return found if isinstance(found, Tensor) and found.ndim == 1 and found.numel() else None

    def begin(self, t: object, batch: int, position: Position | None) -> PipelineRun | None:
        """Return the run that starts with a call at t; ``None`` where the scheduler has no timesteps.

        Args:
            t: as the model is called; read on the host.
            batch: rows of the latent.
            position: what the context says, if it does.

        Raises:
            RunError: another thread or task is in the middle of a run of the scheduler.
        """
        source = self.timesteps()
        if source is None:
            return None
        latest = self._latest
        if latest is not None and latest.source is source and not latest.over and latest.anothers:
            raise RunError(
                "another thread or asyncio task is in the middle of a generation on this pipeline, whose scheduler "
                "serves one at a time: wait for it, or give every thread a pipeline, with a scheduler and a "
                "transformer, of its own"
            )
        if self._latest is None or self._latest.source is not source or self._latest.over:
            self._latest = self._new(source, host_time(t, batch), rounding_of(t), position)
        return self._latest

    def _new(self, source: Tensor, level: float, rounding: float, position: Position | None) -> PipelineRun:
        values = [float(v) for v in source.tolist()]
        start, now = self._start(len(values), position), self._now(len(values), position)
        found: list[tuple[int, Clock, list[float]]] = []
        for form in dict.fromkeys((self.form, *_FORMS)):
            mapped = [_FORMS[form](v) for v in values]
            places = range(len(mapped)) if now is None else (now,)
            place = next((i for i in places if _same(mapped[i], level, rounding)), None)
            if place is not None:
                found.append((place, form, mapped))
        if not found:
            return PipelineRun(source, None, len(values) - (start or 0), start or 0)
        # A level may occur in several forms (1000 / 1000 is also the last timestep, 1): a run begins early, not late.
        place, form, mapped = min(found, key=lambda each: each[0])
        first = place if start is None else start
        given = DeclaredTimesteps.of(source[first:] if form == "timestep" else mapped[first:])
        return PipelineRun(source, given, len(values) - first, first)

    def refuse_strangers(self, module: str) -> None:
        """Refuse a call that another pipeline makes, which shares the module and runs on a scheduler of its own.

        Its steps are not those of this clock; it would be sampled with the wrong ones.

        Args:
            module: name of the module, for the message.

        Raises:
            RunError: the call comes from such a pipeline.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_name == "__call__" and frame.f_code.co_varnames[:1] == ("self",):
                caller: Any = frame.f_locals.get("self")
                if isinstance(getattr(caller, "components", None), dict) and hasattr(caller, "scheduler"):
                    if caller.scheduler is self.scheduler():
                        return
                    raise RunError(
                        f"{module} was called by another {type(caller).__name__} than the one that the cache was "
                        "enabled on, with a scheduler of its own, in this thread or another: its steps are not known. "
                        "Enable the cache on that pipeline instead, or give it a transformer of its own"
                    )
            frame = frame.f_back

    def index(self, run: PipelineRun, position: Position | None) -> int | None:
        """Return the entry of the run that comes now, if the context or the scheduler says so."""
        if position is not None:
            at: Any = run.offset + run.num_steps - position.num_steps + position.index
        else:
            at = getattr(self.scheduler(), "step_index", None)
        known = isinstance(at, int) and 0 <= at - run.offset < run.num_steps
        return at - run.offset if known else None

    def level(self, run: PipelineRun, index: int | None, t: object, batch: int, *, doubtful: bool = False) -> float:
        """Return the level of a call, reading t from the device only until the scheduler's count is trusted.

        Args:
            run: in progress.
            index: of its entry, as far as it is known.
            t: as the model is called.
            batch: rows of the latent.
            doubtful: whether the scheduler has not moved on since a like call: it may be another pipeline's.
        """
        given = run.given
        if given is None:
            return host_time(t, batch)
        exact = given.values[index] if index is not None and index < len(given.values) else None
        if isinstance(t, Tensor):
            known = given.recognise(t)
            if known is not None:
                return known
            if exact is not None and run.trusted and not doubtful and not visible(t):
                return exact
        level = host_time(t, batch)
        if exact is not None and _same(exact, level, rounding_of(t)):
            run.trusted = True
            return exact
        return level

    def _start(self, count: int, position: Position | None) -> int | None:
        """Return the first of the scheduler's timesteps that the pipeline's loop visits, where it is said."""
        if position is not None and position.num_steps <= count:
            return count - position.num_steps
        begin = getattr(self.scheduler(), "begin_index", None)
        return begin if isinstance(begin, int) and 0 <= begin < count else None

    def _now(self, count: int, position: Position | None) -> int | None:
        """Return which of the scheduler's timesteps comes now, where it is said."""
        start = self._start(count, position)
        if position is not None:
            return None if start is None else min(start + position.index, count - 1)
        at = getattr(self.scheduler(), "step_index", None)
        return at if isinstance(at, int) and 0 <= at < count else start


def _same(expected: float, level: float, rounding: float) -> bool:
    return abs(expected - level) <= max(rounding * max(abs(expected), abs(level)), _NEAR_ZERO)
