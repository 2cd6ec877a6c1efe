"""What the sites with one place inside a model share: the decision is taken in the middle of a forward under way.

When the forward reaches the site, the engine is asked. If the whole batch is evaluated, or the whole batch reused, the
forward simply goes on. If the samples differ, it is broken off there, and the denoiser is called once on the rows to
evaluate and once on the others: what runs before and behind the site sees a batch of its own size either way.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

from attrs import define
from torch import Tensor, nn

from cachepolicies.base.errors import RowsUnknownError, RunError
from cachepolicies.base.host import index_on
from cachepolicies.contracts.signal import SignalInput
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.engine.call import WHOLE, Arrival, EvaluationRequest, Exchange
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites._gate import Gates, Handler
from cachepolicies.sites._graphs import compiling_around
from cachepolicies.sites._rows import merge_rows
from cachepolicies.sites.flops import CountedFlops, can_count, measured_of

Mode = Literal["ask", "capture", "replace"]


class RowsDiffer(BaseException):
    """Breaks a forward off at the site: the samples of its batch go on differently. Never leaves this package."""


class PlaceExchange:
    """The engine's exchange at the site's one place, and what it has led to."""

    def __init__(self, served: ServedCall, invocation: Invocation) -> None:
        self.served, self.invocation = served, invocation
        self._exchange: Exchange | None = None
        self.wanted: EvaluationRequest | None = None
        self.result: Tensor | None = None

    def ask(self, arrival: Arrival) -> None:
        """Let the engine decide; then either ``wanted`` or ``result`` is there."""
        self._exchange = self.served.exchange(arrival)
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
class ForwardPass:
    """One pass of the model's forward through the site.

    Attributes:
        mode: ``"ask"`` the engine at the site, ``"capture"`` what is evaluated there, or ``"replace"`` it.
        rows: of the caller's batch in this pass.
        replacement: ``(rows, ...)`` what stands in, in mode ``"replace"``.
        fresh: ``(rows, ...)`` what was evaluated, after mode ``"capture"``.
        entered: whether the forward has reached the site.
        left: whether it has left it.
        parted: whether the forward was broken off there, because the samples differ.
    """

    mode: Mode
    rows: int
    replacement: Tensor | None = None
    fresh: Tensor | None = None
    entered: bool = False
    left: bool = False
    parted: bool = False


@define(eq=False)
class Bypass:
    """Whether the blocks of a site are bypassed. An attribute of its own: compiled blocks guard on it.

    Attributes:
        on: whether they are.
    """

    on: bool = False


class InsideSite(ResolvedSite):
    """A site with one place inside a model: gates on some of its modules, and the order of events in one call.

    What belongs to a forward under way is in attributes, which compiled blocks can guard on; every thread therefore has
    a twin of its own.
    """

    def __init__(self, network: nn.Module, name: str, *, wrapped: bool = True, cut: str = "") -> None:
        self.network = network
        self._wrapped = wrapped
        self._name = name
        self._pass = ForwardPass("ask", 0)
        self._exchange: PlaceExchange | None = None
        self._flops: CountedFlops | None = None
        self._flops_before = 0
        self._countable = True
        # what runs around a network costs something too, and belongs to the call
        self._shares: dict[str, float] = {} if wrapped else measured_of(network, f"{name} {cut}")
        self._twins: WeakKeyDictionary[threading.Thread, InsideSite] = WeakKeyDictionary()
        self._first_thread = threading.get_ident()
        self.bypass = Bypass()
        self._placed: Gates | None = None

    @property
    def name(self) -> str:
        """What the user wrote."""
        return self._name

    @property
    def replacing(self) -> bool:
        """Whether what the site computes is replaced in this pass."""
        return self.bypass.on

    def bypassed(self) -> Mapping[nn.Module, Handler]:
        """Return the gates that are placed only where an evaluation is replaced; none."""
        return {}

    @property
    def shares(self) -> Mapping[str, float]:
        """The part of a call's work that a reuse skips; measured on the first call that is evaluated."""
        return self._shares

    @abstractmethod
    def twin(self) -> InsideSite:
        """Return the same site with nothing under way, for another thread."""

    @abstractmethod
    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gates of one call, for these signals; the same objects every time."""

    def serve(self, served: ServedCall, invocation: Invocation) -> Any:
        """Serve one call; see `ResolvedSite.serve`."""
        return self._of_this_thread()._serve(served, invocation)

    def _of_this_thread(self) -> InsideSite:
        if threading.get_ident() == self._first_thread:
            return self
        thread = threading.current_thread()
        found = self._twins.get(thread)
        if found is None:
            found = self._twins[thread] = self.twin()
            found._first_thread, found._shares = threading.get_ident(), self._shares
        return found

    def _serve(self, served: ServedCall, invocation: Invocation) -> Any:
        exchange = PlaceExchange(served, invocation)
        try:
            gates = self._placed = Gates()
            try:
                gates.place(self.handlers(served.engine.signals))
                if self._shares or not self._countable or not served.engine.reuses:
                    output = self._served(exchange, invocation)
                else:
                    output = self._measured(exchange, invocation)
            finally:
                gates.close()
            served.leave()
            return output
        except BaseException:
            served.request.reset()
            raise
        finally:
            exchange.close()
            self._release()

    # -- for the gates --------------------------------------------------------------------------------------------

    def arrive(self, arrival: Arrival) -> None:
        """Note that the forward has reached the site; in mode ``"ask"``, let the engine decide how it goes on.

        Raises:
            RunError: it was here before in this call.
            RowsDiffer: the samples of the batch are treated differently.
        """
        now = self._pass
        if now.entered:
            raise RunError(
                f"site {self.name!r} of {type(self.network).__name__} was reached twice in one call; wrap or enable "
                "the network itself, so that every call of it is one call of the cache"
            )
        now.entered = True
        if self._flops is not None:
            self._flops_before = self._flops.total
        exchange = self._exchange
        if now.mode != "ask" or exchange is None:
            return
        exchange.ask(arrival)
        wanted = exchange.wanted
        if wanted is None:
            self._turn("replace", exchange.result)
        elif wanted.rows is None and not wanted.audit:
            self._turn("capture", None)
        else:
            now.parted = True
            raise RowsDiffer

    def leave(self, fresh: Tensor | None) -> None:
        """Note that the forward has left the site, with what was evaluated there (``None`` where it was replaced)."""
        self._pass.left = True
        self._pass.fresh = fresh
        if self._flops is not None:
            self._flops_before = self._flops.total - self._flops_before

    def check_order(self, copies: int, what: str, *, known: bool) -> None:
        """Refuse to let samples decide apart where it is not known which rows of a tensor are whose.

        A wrapper that repeats the batch puts it behind itself; a network that folds its frames or windows into the
        batch puts those of a sample next to each other; and nothing tells what else a network does.

        Args:
            copies: rows that it has for each of the caller's.
            what: for the message.
            known: whether the adapter says how they stand.

        Raises:
            RowsUnknownError: there are several, and the samples of the batch decide for themselves.
        """
        exchange = self._exchange
        if copies == 1 or known or self._wrapped or exchange is None or not exchange.served.rows_may_part:
            return
        raise RowsUnknownError(
            f"{what} has {copies} rows for each row of the call, and nothing says which of them belong together, so "
            "samples cannot decide for themselves: decide once for the batch, per_sample=False, or say it in an "
            "adapter, `rows_a_sample`"
        )

    @property
    def latent(self) -> Tensor | None:
        """The latent of the call under way, ``(rows of the caller, ...)``."""
        return None if self._exchange is None else self._exchange.served.call.x

    @property
    def asking(self) -> ServedCall | None:
        """The call whose decision is taken at the site in this pass, ``None`` where it was taken before."""
        return self._exchange.served if self._exchange is not None and self._pass.mode == "ask" else None

    def signal_input(self, block: nn.Module | None = None, arguments: Mapping[str, Any] | None = None) -> SignalInput:
        """Return what a signal is read from, in the pass whose decision is taken.

        Raises:
            RunError: there is none to take.
        """
        served = self.asking
        if served is None or self._exchange is None:
            raise RunError("a signal is read where the engine decides, and it has decided already")
        call, given = served.call, self._exchange.invocation.arguments
        return SignalInput(call.x, call.t, self.network, block, arguments or {}, given)

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

    def keep(self, value: Any) -> None:
        """Keep something for the later calls of this branch and run."""
        if self._exchange is not None:
            self._exchange.served.keep(WHOLE, value)

    def kept(self) -> Any:
        """Return what was kept last, ``None`` if nothing."""
        return None if self._exchange is None else self._exchange.served.kept(WHOLE)

    # -- order of events ------------------------------------------------------------------------------------------

    def _served(self, exchange: PlaceExchange, invocation: Invocation) -> Any:
        self._exchange = exchange
        self._begin("ask", invocation.batch)
        if not exchange.served.number and exchange.served.rows_may_part:
            invocation.check_rows()
        try:
            output = invocation.run(None)
        except RowsDiffer:
            return self._in_parts(exchange, invocation)
        if self._pass.parted:  # the model has swallowed it
            return self._in_parts(exchange, invocation)
        self._check_left()
        if self._pass.mode == "capture":
            exchange.answer(self._captured())
            if exchange.served.number and exchange.served.rows_may_part:
                invocation.check_rows()
        return output

    def _in_parts(self, exchange: PlaceExchange, invocation: Invocation) -> Any:
        """Call the denoiser on the rows that are wanted, then on those that are reused; put the outputs together."""
        served = exchange.served
        if served.call.x is not served.given:  # the model may have written on the latent before it was broken off
            invocation = invocation.with_latent(served.call.x.clone())
        batch = invocation.batch
        everyone = tuple(range(batch))
        parts: list[tuple[tuple[int, ...], Any]] = []
        while (wanted := exchange.wanted) is not None:
            rows = everyone if wanted.rows is None else wanted.rows
            self._begin("capture", len(rows))
            output = invocation.run(wanted.rows)
            self._check_left()
            exchange.answer(self._captured())
            if not wanted.audit:
                parts.append((rows, output))
        done = {row for rows, _ in parts for row in rows}
        rest = tuple(row for row in everyone if row not in done)
        if rest:
            result = exchange.result
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
        self._pass = ForwardPass(mode, rows, replacement)
        self._bypass(mode == "replace")

    def _turn(self, mode: Mode, replacement: Tensor | None) -> None:
        self._pass.mode, self._pass.replacement = mode, replacement
        self._bypass(mode == "replace")

    def _bypass(self, on: bool) -> None:
        """Say whether the site is bypassed; the first time in a call, the modules inside of it get their gates."""
        self.bypass.on = on
        if on and self._placed is not None:
            self._placed.place(self.bypassed())
            self._placed = None

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

    def _measured(self, exchange: PlaceExchange, invocation: Invocation) -> Any:
        """Serve a call, and count what the whole of it costs and what the site does, if it evaluates."""
        if compiling_around():
            return self._served(exchange, invocation)
        if not can_count(invocation.function, self.network):
            self._countable = False
            return self._served(exchange, invocation)
        with CountedFlops() as counter:
            self._flops = counter
            try:
                output = self._served(exchange, invocation)
            finally:
                self._flops = None
        if self._pass.mode == "capture":
            if counter.whole and counter.total:
                self._shares[WHOLE] = self._flops_before / counter.total
            else:
                self._countable = False
        return output

    def _release(self) -> None:
        self._exchange = self._placed = None
        self._begin("ask", 0)
