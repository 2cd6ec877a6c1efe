"""Ranges of the block stack as the site, a place each: what a range adds to its streams is remembered, and added again.

Delta-DiT (arXiv 2406.01125) holds the rear of the stack first and its front later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from attrs import evolve, field, frozen
from torch import Tensor, nn

from cachepolicies.adapters.find import adapter_of, blocks_of
from cachepolicies.base.errors import InputError, RunError, SettingsError
from cachepolicies.base.foreign import writes_so_far
from cachepolicies.contracts.adapter import Adapter, submodule
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal
from cachepolicies.contracts.site import Site
from cachepolicies.engine.call import Arrival, EvaluationRequest, Exchange
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites._arguments import ArgumentNames
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import GateOfSite, Resume
from cachepolicies.sites._inside import Bypass
from cachepolicies.sites._places import PlacesSite, Underway, check_some
from cachepolicies.sites._rows import pack, unpack
from cachepolicies.sites._whereabouts import Whereabouts
from cachepolicies.sites.blocks import Between, handed_on, refuse_frozen_graphs
from cachepolicies.sites.signals import outside_signals, read_signal

PROBE, PREFIX, PREFIX_STREAMS = "probe", "prefix", "prefix_streams"
"""Names of the signals of a range, ``(B, ...)``: what enters it, and what the blocks in front of it have added to that,
both of the streams that are heard behind the stack; and the latter of all streams, as the range remembers them."""

ENTERED_STREAMS = "entered_streams"
"""Name of a signal of every range, ``(B, ...)``: what enters it, of the streams of which it remembers what it adds."""

_WRITTEN = re.compile(r"blocks\[\s*(-?\d+|)\s*:\s*(-?\d+|)\s*\]")


@frozen(eq=False)
class Range:
    """Blocks that run one after the other.

    Attributes:
        place: name of the range.
        blocks: of it, by path, in the order in which they run.
        hands_on: what each of them returns: the name of the argument that it changed, or several.
        kind: what a site says of it to policies, see `ResolvedSite.kinds`; empty for nothing.
        behind: the first block of the stack, where the range begins behind it and the same streams flow from there on.
        heard: those of the streams that are heard behind the stack.
        behind_path: of ``behind``.
    """

    place: str
    blocks: Mapping[str, nn.Module]
    hands_on: str | tuple[str, ...]
    kind: str = ""
    behind: nn.Module | None = None
    heard: tuple[str, ...] = ()
    behind_path: str = ""

    def found_again(self, network: nn.Module) -> Range:
        """Return the same range with the blocks that the network has now."""
        blocks = {path: submodule(network, path, f"site {self.place!r}") for path in self.blocks}
        behind = None if self.behind is None else submodule(network, self.behind_path, f"site {self.place!r}")
        return evolve(self, blocks=blocks, behind=behind)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all blocks that it has to do with."""
        return (*self.blocks, *([self.behind_path] if self.behind_path else []))

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of what flows through."""
        return (self.hands_on,) if isinstance(self.hands_on, str) else self.hands_on


def range_of(network: nn.Module, adapter: Adapter, start: int | None, stop: int | None) -> Range:
    """Return the blocks from ``start`` up to ``stop`` of a network's stack, counted as in a slice.

    Raises:
        SettingsError: there are none; or what flows through the stack changes its form between them.
    """
    stack = list(blocks_of(network, adapter).items())
    chosen = stack[start:stop]
    place = f"blocks[{'' if start is None else start}:{'' if stop is None else stop}]"
    kind = type(network).__name__
    if not chosen:
        raise SettingsError(f"site {place!r}: {kind} has {len(stack)} blocks, and none of them is in this range")
    forms = {(blocks.hands_on, blocks.part) for _, (_, blocks) in chosen}
    ((hands_on, _), *others) = forms
    ends = chosen[0][1][1].path, chosen[-1][1][1].path
    if adapter.take_turns and ends[0] != ends[1]:
        raise SettingsError(
            f"site {place!r}: the blocks of {ends[0]} and of {ends[1]} take turns in a {kind}, each with the tokens in "
            "another order; a range begins and ends with blocks of one list"
        )
    if others or not isinstance(hands_on, str | tuple):
        paths = ", ".join(dict.fromkeys(blocks.path for _, (_, blocks) in chosen))
        why = (
            f"{paths} pass on different things" if others else f"{paths} pass on more than the streams that they change"
        )
        raise SettingsError(
            f"site {place!r}: {why} in a {kind}, so that nothing can be added to what enters the range; choose a range "
            "within one list of blocks, or site='blocks' for all of them"
        )
    found = Range(place, {path: block for path, (block, _) in chosen}, hands_on)
    before = stack[: stack.index(chosen[0])]
    if before and {(blocks.hands_on, blocks.part) for _, (_, blocks) in before} == forms and not adapter.take_turns:
        heard = tuple(name for name in found.streams if name in adapter.streams)
        return evolve(found, behind=before[0][1][0], heard=heard, behind_path=before[0][0])
    return found


def written_range(text: str) -> BlockRange | None:
    """Return the site that ``"blocks[2:10]"`` stands for, ``None`` for other text."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        return None
    start, stop = (None if not number else int(number) for number in found.groups())
    return BlockRange(start, stop)


def _whole(instance: object, attribute: Any, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{attribute.name} is the number of a block")


@frozen
class BlockRange(Site):
    """Cuts around some of the blocks of the stack, written ``"blocks[2:10]"``.

    Attributes:
        start: number of the first block, from the end where it is negative; ``None`` for the first of all.
        stop: number of the block behind the last; ``None`` for no further one.
    """

    name: ClassVar[str] = "block-range"

    start: int | None = field(default=None, validator=_whole)
    stop: int | None = field(default=None, validator=_whole)

    def resolve(self, setup: Setup) -> RangesSite:
        """Return the range on the network.

        Raises:
            NeedsError: there is no network, or no adapter for its class.
            SettingsError: no block is in the range; or what flows changes its form within it; or the network runs
                inside one graph.
        """
        network = setup.network_for(self.name)
        refuse_frozen_graphs(network)
        adapter = adapter_of(network) if setup.adapter is None else setup.adapter
        found = range_of(network, adapter, self.start, self.stop)
        return RangesSite(found.place, network, [found], outside_signals(setup))


class _Passage:
    """A range that the forward under way has entered.

    Attributes:
        entered: what went in, by stream; ``None`` for one that is not there in this model.
        wanted: what the engine wants to have evaluated, ``None`` once it is served.
        result: ``(rows, ...)`` what is added, once it is served.
        evaluated: whether what was computed flows on.
        signals: that the engine was told of; what belongs to streams that the range drops is not known beforehand.
    """

    def __init__(self, entered: list[Tensor | None], exchange: Exchange, work: int, signals: dict[str, Tensor]) -> None:
        self.entered, self.work, self.signals = entered, work, signals
        self.versions = [0 if stream is None else writes_so_far(stream) for stream in entered]
        self.wanted: EvaluationRequest | None = None
        self.result: Tensor | None = None
        self.evaluated = self.over = False
        self._exchange = exchange
        self._advance(None)

    def answer(self, fresh: Tensor) -> None:
        """Hand over what was computed, as often as it is wanted."""
        while self.wanted is not None:
            self.evaluated = self.evaluated or not self.wanted.audit
            self._advance(fresh)

    def close(self) -> None:
        """Give up what has not been served."""
        self._exchange.close()

    def _advance(self, fresh: Tensor | None) -> None:
        try:
            self.wanted = next(self._exchange) if fresh is None else self._exchange.send(fresh)
        except StopIteration as done:
            self.wanted, self.result = None, done.value


class _Underway(Underway):
    """The call under way, and the ranges that it has entered."""

    def __init__(self, served: ServedCall, invocation: Invocation) -> None:
        super().__init__(served, invocation)
        self.passages: dict[str, _Passage] = {}
        self.stack: Mapping[str, Any] = {}
        self.bypasses: list[Bypass] = []


class RangesSite(PlacesSite[_Underway]):
    """Ranges of the block stack, one place each; what a range adds to its streams is remembered."""

    def __init__(
        self, name: str, network: nn.Module, ranges: Iterable[Range], signals: Mapping[str, Signal] | None = None
    ) -> None:
        """Take the ranges.

        Args:
            name: of the site.
            network: whose stack it is.
            ranges: in the order in which they run; see `range_of`.
            signals: read from the latent and t, by name; see `cachepolicies.sites.outside_signals`.

        Raises:
            SettingsError: there is none; or two have a block in common.
        """
        super().__init__(name, network, signals)
        given = list(ranges)
        self.ranges = {each.place: each for each in given}
        self._note_whereabouts()
        check_some(self.ranges, name, network)
        seen: dict[str, str] = {}
        for each in given:
            place = each.place
            for path in each.blocks:
                if path in seen:
                    raise SettingsError(f"site {name!r}: {seen[path]} and {place} have the block {path!r} in common")
                seen[path] = place

    @property
    def places(self) -> tuple[str, ...]:
        """The ranges, as they are written."""
        return tuple(self.ranges)

    @property
    def signals(self) -> frozenset[str]:
        """Those that need nothing from inside the model, what enters, and what the blocks in front have added."""
        behind = all(each.behind is not None for each in self.ranges.values())
        return super().signals | {ENTERED_STREAMS} | ({PROBE, PREFIX, PREFIX_STREAMS} if behind else set())

    @property
    def kinds(self) -> Mapping[str, str]:
        """What was said of the ranges."""
        return {place: each.kind for place, each in self.ranges.items() if each.kind}

    @property
    def remembers_residuals(self) -> bool:
        """Yes."""
        return True

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The first block of each."""
        return {place: next(iter(each.blocks.values())) for place, each in self.ranges.items()}

    def find_again(self) -> None:
        """Find the blocks at their paths."""
        self.ranges = {place: each.found_again(self.network) for place, each in self.ranges.items()}
        self._note_whereabouts()

    def _note_whereabouts(self) -> None:
        self._whereabouts = Whereabouts(self.network, (path for each in self.ranges.values() for path in each.paths))

    def begun(self, served: ServedCall, invocation: Invocation) -> _Underway:
        """Return the state of a new call."""
        return _Underway(served, invocation)

    def handlers(self) -> Mapping[nn.Module, Handler]:
        """Return a gate for each block of each range."""
        found: dict[nn.Module, Handler] = {}
        for each in self.ranges.values():
            bypass, blocks = Bypass(), list(each.blocks.values())
            found.update({block: Between(bypass, block, each.hands_on) for block in blocks[1:-1]})
            found.update({block: _Edge(self, each, bypass, block) for block in (blocks[0], blocks[-1])})
        firsts = {each.behind for each in self.ranges.values()} - {None}
        found.update({block: _First(self, block) for block in firsts if block is not None and block not in found})
        return found

    def over(self, now: _Underway) -> None:
        """Look at a call after its forward.

        Raises:
            RunError: no range was reached, or one was not left.
        """
        super().over(now)
        for place, passage in now.passages.items():
            if not passage.over:
                raise RunError(
                    f"place {place!r} of {type(self.network).__name__} was entered and not left in a call: its last "
                    "block did not run. A pass that skips layers for guidance must not skip the ends of a range"
                )

    def left(self, now: _Underway) -> None:
        """Let go of what belongs to a call."""
        for bypass in now.bypasses:
            bypass.on = False
        for passage in now.passages.values():
            passage.close()

    # -- for the gates --------------------------------------------------------------------------------------------

    def enter(self, each: Range, bypass: Bypass, arguments: Mapping[str, Any]) -> None:
        """Note what enters a range, and let the engine decide.

        Raises:
            RunError: the range was entered before in this call.
            InputError: a stream is no tensor.
        """
        now, place = self.now, each.place
        if place in now.reached:
            raise RunError(
                f"place {place!r} of {type(self.network).__name__} was reached twice in one call; wrap or enable the "
                "network itself, so that every call of it is one call of the cache"
            )
        now.reached.add(place)
        entered = [value if isinstance(value, Tensor) else None for value in map(arguments.get, each.streams)]
        streams = [stream for stream in entered if stream is not None]
        if not streams:
            raise InputError(
                f"the first block of {place} of {type(self.network).__name__} got no tensor as "
                f"{', '.join(each.streams)}; its adapter says that this flows through the blocks"
            )
        given = None
        if now.served.engine.looks_at_input:
            given = pack([stream.detach() for stream in streams], now.rows, f"what enters {place}")
        signals = self._signals_at(now, each, arguments)
        arrival = Arrival(place, given, signals, read_only=True)
        passage = now.passages[place] = _Passage(entered, now.served.exchange(arrival), now.work, signals)
        now.bypasses.append(bypass)
        bypass.on = passage.wanted is None

    def note_stack(self, arguments: Mapping[str, Any]) -> None:
        """Note what enters the first block of the stack."""
        self.now.stack = arguments

    def _signals_at(self, now: _Underway, each: Range, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the signals that are wanted at a range."""
        place, found = each.place, {}
        wanted = now.served.wanted_signals(place) if now.served.engine.signals else frozenset()
        entered = [arguments.get(name) for name in each.streams]
        heard = [name in each.heard for name in each.streams]
        if PROBE in wanted:
            streams = [value for value, on in zip(entered, heard, strict=True) if on and isinstance(value, Tensor)]
            found[PROBE] = self._packed(now, each, streams, PROBE)
        if PREFIX in wanted:
            found[PREFIX] = self._added(now, each, entered, heard)
        if PREFIX_STREAMS in wanted:
            found[PREFIX_STREAMS] = self._added(now, each, entered, now.served.kept(place) or [True] * len(entered))
        if ENTERED_STREAMS in wanted:
            found[ENTERED_STREAMS] = self._entered(now, each, entered, now.served.kept(place) or [True] * len(entered))
        return found | self.read_signals(now, place, found.keys())

    def _entered(self, now: _Underway, each: Range, entered: Sequence[Any], chosen: Sequence[bool]) -> Tensor:
        """Return what enters a range of some streams."""
        streams = [value for value, on in zip(entered, chosen, strict=True) if on and isinstance(value, Tensor)]
        return self._packed(now, each, streams, ENTERED_STREAMS)

    def _added(self, now: _Underway, each: Range, entered: Sequence[Any], chosen: Sequence[bool]) -> Tensor:
        """Return what was added to some streams between the begin of the stack and the range."""
        streams = [
            value - then
            for name, value, on in zip(each.streams, entered, chosen, strict=True)
            if on and isinstance(value, Tensor) and isinstance(then := now.stack.get(name), Tensor)
        ]
        return self._packed(now, each, streams, PREFIX)

    def _packed(self, now: _Underway, each: Range, streams: list[Tensor], name: str) -> Tensor:
        if not streams:
            raise InputError(
                f"signal {name!r} of {each.place} of {type(self.network).__name__}: {', '.join(each.streams)} did not "
                "enter the first block of the stack in this call"
            )
        return read_signal(name, pack(streams, now.rows, f"what comes before {each.place}"), now.rows, each.place)

    def leave(self, each: Range, leaving: Sequence[Any] | None) -> list[Tensor | None] | None:
        """Return what leaves the range instead of what its blocks returned, ``None`` for these themselves.

        Args:
            each: the range.
            leaving: by stream; ``None`` where the blocks were bypassed.

        Raises:
            RunError: the range was not entered.
            InputError: the blocks change a stream in place, or its shape.
        """
        now, place = self.now, each.place
        passage = now.passages.get(place)
        if passage is None:
            raise RunError(
                f"place {place!r} of {type(self.network).__name__} was left without having been entered: its first "
                "block did not run"
            )
        passage.over = True
        if leaving is not None:
            # The last block of some stacks drops a stream, or does not have it.
            flows = [
                isinstance(left, Tensor) and entered is not None
                for left, entered in zip(leaving, passage.entered, strict=True)
            ]
            if PREFIX_STREAMS in passage.signals and not all(flows):
                passage.signals[PREFIX_STREAMS] = self._added(now, each, passage.entered, flows)
            if ENTERED_STREAMS in passage.signals and not all(flows):
                passage.signals[ENTERED_STREAMS] = self._entered(now, each, passage.entered, flows)
            passage.answer(pack(self._residuals(each, passage, leaving, flows), now.rows, f"what {place} adds"))
            now.note_work(place, passage.work)
            if passage.evaluated:
                now.served.keep(place, flows)
                return None
        flows = now.served.kept(place)
        assert passage.result is not None  # served, as nothing is wanted any more
        streams = [entered if on else None for entered, on in zip(passage.entered, flows, strict=True)]
        residuals = iter(unpack(passage.result, [stream for stream in streams if stream is not None], now.rows))
        return [None if stream is None else stream + next(residuals) for stream in streams]

    def _residuals(self, each: Range, passage: _Passage, leaving: Sequence[Any], flows: Sequence[bool]) -> list[Tensor]:
        kind, found = type(self.network).__name__, []
        streams = zip(each.streams, passage.entered, leaving, passage.versions, flows, strict=True)
        for name, entered, left, version, on in streams:
            if not on or entered is None:
                continue
            if writes_so_far(entered) != version or (
                entered.is_inference() and left is not entered and entered.data_ptr() == left.data_ptr()
            ):
                raise InputError(
                    f"{each.place} of {kind} changes the stream {name!r} in place, so that what entered is gone; use "
                    "site='output'"
                )
            if left.shape != entered.shape:
                raise InputError(
                    f"stream {name!r} enters {each.place} of {kind} as {tuple(entered.shape)} and leaves as "
                    f"{tuple(left.shape)}; there is no difference to remember"
                )
            found.append(left - entered)
        return found


class _First(GateOfSite):
    """The gate of the first block of the stack, where it belongs to no range."""

    def __init__(self, site: RangesSite, block: nn.Module) -> None:
        super().__init__(site)
        self.names = ArgumentNames(block)

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what enters."""
        self.site.note_stack(self.names.bind(args, kwargs))
        return resume(proceed)(*args, **kwargs)


class _Edge(GateOfSite):
    """The gate of the first block of a range, of its last, or of an only one."""

    def __init__(self, site: RangesSite, each: Range, bypass: Bypass, block: nn.Module) -> None:
        super().__init__(site)
        blocks = list(each.blocks.values())
        self.range, self.bypass, self.block = each, bypass, block
        self.first, self.last = block is blocks[0], block is blocks[-1]
        self.names = ArgumentNames(block)
        self.begins_stack = any(other.behind is block for other in site.ranges.values())

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the engine decide where the range begins, and take or replace what leaves it where it ends."""
        site: RangesSite = self.site
        if self.begins_stack:
            site.note_stack(self.names.bind(args, kwargs))
        if self.first:
            site.enter(self.range, self.bypass, self.names.bind(args, kwargs))
        if self.bypass.on:
            output = handed_on(self.range.hands_on, self.block, self.names.bind(args, kwargs))
            instead = site.leave(self.range, None) if self.last else None
        else:
            output = resume(proceed)(*args, **kwargs)
            instead = site.leave(self.range, self._leaving(output)) if self.last else None
        if instead is None:
            return output
        return instead[0] if isinstance(self.range.hands_on, str) else tuple(instead)

    def _leaving(self, output: Any) -> Sequence[Any]:
        """Return the streams from what the last block returned."""
        names = self.range.streams
        found = (output,) if isinstance(self.range.hands_on, str) else output
        if not isinstance(found, tuple) or len(found) != len(names) or not any(isinstance(v, Tensor) for v in found):
            raise InputError(
                f"the last block of {self.range.place} of {type(self.site.network).__name__} returned a "
                f"{type(output).__name__} where its adapter expects {', '.join(names)}; correct `hands_on`"
            )
        return found
