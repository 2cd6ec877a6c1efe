"""What the sites inside a model share: the decision is taken in the middle of a forward that is under way.

The engine serves a call by reverse communication (`Engine.exchange`). When the forward reaches the site, the engine is
asked. If the whole batch is evaluated, or the whole batch reused, the forward simply goes on. If the samples differ, it
is broken off there, and the denoiser is called once on the rows to evaluate and once on the others: what runs before
and behind the site sees a batch of its own size either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from attrs import define, evolve
from torch import Tensor, nn

from cachepolicies._engine import Engine, Exchange, Wanted
from cachepolicies._errors import RunError
from cachepolicies._host import index_on
from cachepolicies._run import Call
from cachepolicies.sites._gate import Handler, gates
from cachepolicies.sites._rows import merge_rows
from cachepolicies.sites.base import Invocation

Mode = Literal["ask", "capture", "replace"]


class Parted(Exception):  # noqa: N818  # a signal, no error
    """Breaks a forward off at the site, because the samples of its batch part here. Never leaves this package."""


class Passage:
    """One call, served from inside the forward: the engine's exchange and what it has led to."""

    def __init__(self, engine: Engine, call: Call) -> None:
        self._engine = engine
        self._call = call
        self._exchange: Exchange | None = None
        self.wanted: Wanted | None = None
        self.result: Tensor | None = None

    @property
    def needs_signals(self) -> frozenset[str]:
        """Names of the signals that the policy will look at; none where the call follows another branch's decision."""
        wanted = self._engine.policy.needs.signals
        return frozenset() if wanted and self._engine.follows(self._call) else wanted

    def ask(self, signals: Mapping[str, Tensor]) -> None:
        """Let the engine decide; then either ``wanted`` or ``result`` is there."""
        self._exchange = self._engine.exchange(evolve(self._call, signals=signals))
        self._advance(None)

    def answer(self, fresh: Tensor) -> None:
        """Hand over what was ``wanted``; then either more is wanted, or the ``result`` is there."""
        self._advance(fresh)

    def close(self) -> None:
        """Give up an exchange that has not returned."""
        if self._exchange is not None:
            self._exchange.close()

    def _advance(self, fresh: Tensor | None) -> None:
        if self._exchange is None:
            raise RunError("an evaluation was handed over before it was asked for")
        try:
            self.wanted = next(self._exchange) if fresh is None else self._exchange.send(fresh)
        except StopIteration as done:
            self.wanted, self.result = None, done.value


@define(eq=False)
class Pass:
    """One pass of the model's forward through the site.

    Attributes:
        mode: ``"ask"`` the engine at the site, ``"capture"`` what is evaluated there, or ``"replace"`` it.
        rows: of the caller's batch in this pass.
        replacement: ``(rows, ...)`` what stands in, in mode ``"replace"``.
        fresh: ``(rows, ...)`` what was evaluated, after mode ``"capture"``.
        entered: whether the forward has reached the site.
        left: whether it has left it.
    """

    mode: Mode
    rows: int
    replacement: Tensor | None = None
    fresh: Tensor | None = None
    entered: bool = False
    left: bool = False


class InsideSite(ABC):
    """A site inside a model: gates on some of its modules, and the order of events in one call."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network
        self.name = name
        self._pass = Pass("ask", 0)
        self._passage: Passage | None = None
        self.replacing = False
        """Whether the blocks are bypassed. A plain attribute of its own: compiled blocks guard on it."""

    @property
    @abstractmethod
    def signals(self) -> frozenset[str]:
        """Names of the values from inside the model that this site can supply."""

    @abstractmethod
    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gates of one call, for these signals; the same objects every time."""

    def serve(self, engine: Engine, call: Call, invocation: Invocation) -> Any:
        """Serve one call; see `Site.serve`."""
        passage = Passage(engine, call)
        try:
            with gates(self.handlers(engine.policy.needs.signals)):
                return self._served(engine, passage, invocation)
        except BaseException:
            engine.reset()
            self.reset()
            raise
        finally:
            passage.close()
            self._release()

    def reset(self) -> None:  # noqa: B027  # most sites keep nothing
        """Nothing is kept between calls beside the engine's own state."""

    # -- for the gates --------------------------------------------------------------------------------------------

    def arrive(self, signals: Mapping[str, Tensor]) -> None:
        """Note that the forward has reached the site; in mode ``"ask"``, let the engine decide how it goes on.

        Raises:
            RunError: it was here before in this call.
            Parted: the samples of the batch are treated differently.
        """
        now = self._pass
        if now.entered:
            raise RunError(
                f"site {self.name!r} of {type(self.network).__name__} was reached twice in one call; wrap or enable "
                "the network itself, so that every call of it is one call of the cache"
            )
        now.entered = True
        passage = self._passage
        if now.mode != "ask" or passage is None:
            return
        passage.ask(signals)
        wanted = passage.wanted
        if wanted is None:
            self._turn("replace", passage.result)
        elif wanted.rows is None and not wanted.audit:
            self._turn("capture", None)
        else:
            raise Parted

    def leave(self, fresh: Tensor | None) -> None:
        """Note that the forward has left the site, with what was evaluated there (``None`` where it was replaced)."""
        self._pass.left = True
        self._pass.fresh = fresh

    @property
    def replacement(self) -> Tensor:
        """What stands in during this pass, ``(rows, ...)``."""
        if self._pass.replacement is None:
            raise RunError(f"site {self.name!r}: nothing to put in place of an evaluation")
        return self._pass.replacement

    @property
    def rows(self) -> int:
        """Rows of the caller's batch in this pass."""
        return self._pass.rows

    # -- order of events ------------------------------------------------------------------------------------------

    def _served(self, engine: Engine, passage: Passage, invocation: Invocation) -> Any:
        self._passage = passage
        self._begin("ask", invocation.batch)
        try:
            output = invocation.run(None)
        except Parted:
            return self._in_parts(passage, invocation)
        self._check_left()
        if self._pass.mode == "capture":
            passage.answer(self._captured())
            if engine.slices:
                invocation.check_rows()
        return output

    def _in_parts(self, passage: Passage, invocation: Invocation) -> Any:
        """Call the denoiser on the rows that are wanted, then on those that are reused; put the outputs together."""
        batch = invocation.batch
        everyone = tuple(range(batch))
        parts: list[tuple[tuple[int, ...], Any]] = []
        while (wanted := passage.wanted) is not None:
            rows = everyone if wanted.rows is None else wanted.rows
            self._begin("capture", len(rows))
            output = invocation.run(wanted.rows)
            self._check_left()
            passage.answer(self._captured())
            if not wanted.audit:
                parts.append((rows, output))
        served = {row for rows, _ in parts for row in rows}
        rest = tuple(row for row in everyone if row not in served)
        if rest:
            result = passage.result
            if result is None:
                raise RunError("the engine ended an exchange without a result")
            whole = len(rest) == batch
            kept = result if whole else result.index_select(0, index_on(rest, result.device))
            self._begin("replace", len(rest), kept)
            output = invocation.run(None if whole else rest)
            self._check_left()
            parts.append((rest, output))
        return parts[0][1] if len(parts) == 1 else merge_rows(parts, batch)

    def _begin(self, mode: Mode, rows: int, replacement: Tensor | None = None) -> None:
        self._pass = Pass(mode, rows, replacement)
        self.replacing = mode == "replace"

    def _turn(self, mode: Mode, replacement: Tensor | None) -> None:
        self._pass.mode, self._pass.replacement = mode, replacement
        self.replacing = mode == "replace"

    def _captured(self) -> Tensor:
        fresh = self._pass.fresh
        if fresh is None:
            raise RunError(f"site {self.name!r}: nothing was captured in an evaluation")
        self._pass.fresh = None
        return fresh

    def _check_left(self) -> None:
        if not self._pass.left:
            what = "left" if self._pass.entered else "reached"
            raise RunError(
                f"site {self.name!r} of {type(self.network).__name__} was never {what} in a call: its modules ran "
                "where they cannot be intercepted (exported, traced or replaced after set-up). Enable the cache on the "
                "eager model, or compile it with torch.compile, which is supported before and after enabling"
            )

    def _release(self) -> None:
        self._passage = None
        self._begin("ask", 0)
