"""The block stack as the site: the embedding and the head run at every step, the blocks only when they are evaluated.

What is remembered is the residual, *what leaves the stack minus what entered it*, and a skipped evaluation continues
with *input + residual*: where the authors of SenCache (arXiv 2602.24208), TeaCache (2411.19108) and MagCache
(2506.09045) cut in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, fx, nn

from cachepolicies.adapters.find import adapter_of, blocks_of
from cachepolicies.base.errors import InputError, RunError, SettingsError
from cachepolicies.base.foreign import is_compiled_by_itself, writes_so_far
from cachepolicies.contracts.adapter import Adapter, Blocks, BlockSignal, HandsOn, OutputOf, submodule
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import Signal
from cachepolicies.contracts.site import Site
from cachepolicies.engine.call import WHOLE, Arrival
from cachepolicies.engine.engine import ServedCall
from cachepolicies.sites._arguments import ArgumentNames
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import GateOfSite, Resume, ServedApart
from cachepolicies.sites._inside import Bypass, InsideSite
from cachepolicies.sites._rows import copies_of, pack, unpack
from cachepolicies.sites._weights import weights_at_hand
from cachepolicies.sites.signals import read_signal, registered_signals


@frozen
class BlockStack(Site):
    """Cuts around the block stack, as the adapter of the network's class describes it.

    A class without one is served by a generic adapter where it is plain; see `cachepolicies.adapters.adapter_of`.
    """

    name: ClassVar[str] = "blocks"

    def resolve(self, setup: Setup) -> BlocksSite:
        """Return the site on the network.

        Raises:
            NeedsError: there is no network, or no adapter for its class.
            SettingsError: the adapter names a module that the network does not have, or its blocks are one graph.
        """
        network = setup.network_for(self.name)
        refuse_frozen_graphs(network)
        adapter = adapter_of(network) if setup.adapter is None else setup.adapter
        return BlocksSite(network, adapter, registered_signals(setup), wrapped=setup.model is not network)


class BlocksSite(InsideSite):
    """The block stack of a network."""

    def __init__(
        self,
        network: nn.Module,
        adapter: Adapter,
        signals: Mapping[str, Signal] | None = None,
        *,
        wrapped: bool = True,
    ) -> None:
        """Find the modules.

        Args:
            network: the module whose stack it is.
            adapter: where the stack is, and which signals the class has.
            signals: further ones by name; the adapter's own come first.
            wrapped: whether something around the network may call it on the batch several times over.

        Raises:
            SettingsError: the adapter names a module or an argument that the network does not have.
        """
        super().__init__(network, "blocks", wrapped=wrapped, cut=f"{adapter.stack} {adapter.ends_before}")
        self.adapter = adapter
        self._registered = dict(signals or {})
        self._entering: list[Tensor] = []
        self._versions: list[int] = []
        self._together = 1
        self._seen: dict[str, Tensor] = {}
        self._resolve()

    def _resolve(self) -> None:
        """Build the gates for the modules that the network has now."""
        network, adapter = self.network, self.adapter
        blocks = list(blocks_of(network, adapter).values())
        self._first, first = blocks[0]
        names = ArgumentNames(self._first)
        for stream in adapter.streams:
            if stream not in names.all:
                raise SettingsError(
                    f"adapter of {adapter.model!r}: the first block, a {type(self._first).__name__} in {first.path!r}, "
                    f"has no argument {stream!r}; its arguments are {', '.join(names.all)}"
                )
        ends, last = adapter.ends_before, len(blocks) - 1
        self._places = self._current_places()
        self._handlers: dict[nn.Module, Handler] = {}
        self._bypassed: dict[nn.Module, Handler] = {}
        self._with_taps: dict[tuple[frozenset[str], bool], Mapping[nn.Module, Handler]] = {}
        for at, (block, kind) in enumerate(blocks):
            is_last = at == last and ends is None
            if at == 0 or is_last:
                self._handlers[block] = _Edge(self, block, kind, first=at == 0, last=is_last)
            else:
                self._bypassed[block] = Between(self.bypass, block, kind.hands_on)
        if ends is not None:
            end = submodule(network, ends, f"adapter of {adapter.model!r}")
            self._handlers[end] = _End(self, ArgumentNames(end))

    def _current_places(self) -> list[tuple[dict[str, Any], tuple[tuple[str, Any], ...]]]:
        """Return the modules that the gates are for, with the dictionaries that their parents hold them in."""
        found: list[tuple[dict[str, Any], tuple[tuple[str, Any], ...]]] = []
        signals = self.adapter.signals.values()
        paths = [self.adapter.ends_before, *(each.path for each in signals if isinstance(each, OutputOf))]
        for path in (*(blocks.path for blocks in self.adapter.stack), *(path for path in paths if path is not None)):
            module = self.network
            for name in path.split("."):
                parent = module._modules
                module = submodule(module, name, "adapter")
                found.append((parent, ((name, module),)))
            if isinstance(module, nn.ModuleList):
                found.append((module._modules, tuple(module._modules.items())))
        return found

    def _is_unchanged(self) -> bool:
        """Return whether every module is still where it was; asked at every call."""
        for held, entries in self._places:
            if len(entries) > 1 and len(held) != len(entries):
                return False
            for name, module in entries:
                if held.get(name) is not module:
                    return False
        return True

    @property
    def remembers_residuals(self) -> bool:
        """Yes."""
        return True

    @property
    def signals(self) -> frozenset[str]:
        """Those that the adapter has, and those that are registered for any network."""
        return frozenset({*self.adapter.signals, *self._registered})

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The first block, which stands for all."""
        return {WHOLE: next(iter(blocks_of(self.network, self.adapter).values()))[0]}

    def twin(self) -> BlocksSite:
        """Return the same site for another thread."""
        return BlocksSite(self.network, self.adapter, self._registered, wrapped=self._wrapped)

    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gates of the stack, and of the modules whose outputs are wanted as signals."""
        if not self._is_unchanged():  # LoRA wraps modules, and unwraps them
            self._resolve()
        # Blocks of one class that are compiled by themselves share a graph as long as all have a gate, or none.
        compiled = is_compiled_by_itself(self._first)
        found = self._with_taps.get((signals, compiled))
        if found is None:
            taps: dict[nn.Module, Handler] = {}
            for name in sorted(signals):
                source = self._source(name)
                if isinstance(source, OutputOf):
                    tapped = submodule(self.network, source.path, f"signal {name!r} of {self.adapter.model!r}")
                    taps[tapped] = _Tap(self._seen, name, source, taps.get(tapped))
            between = self._bypassed if compiled else {}
            found = self._with_taps[signals, compiled] = {**taps, **between, **self._handlers}
        return found

    def bypassed(self) -> Mapping[nn.Module, Handler]:
        """Return the gates of the blocks between the first and the last."""
        return {} if is_compiled_by_itself(self._first) else self._bypassed

    # -- for the gates --------------------------------------------------------------------------------------------

    def enter(self, arguments: Mapping[str, Any]) -> None:
        """Note what enters the stack, and let the engine decide."""
        self._take(arguments)
        served = self.asking
        wanted = frozenset() if served is None else served.wanted_signals()
        signals = {name: self._signal(name, arguments) for name in wanted}
        self.arrive(Arrival(WHOLE, self._packed_input(served), signals, read_only=True))

    def _packed_input(self, served: ServedCall | None) -> Tensor | None:
        """Return what enters the stack as one tensor, where somebody looks at it; putting it together is a copy."""
        if served is None or not served.engine.looks_at_input:
            return None
        return pack(
            [stream.detach() for stream in self._entering], self.rows, "what enters the block stack", self._together
        )

    def _take(self, arguments: Mapping[str, Any]) -> None:
        self._together = self._rows_a_sample()
        self._entering = [self._stream(arguments, stream) for stream in self.adapter.streams]
        self._versions = [writes_so_far(tensor) for tensor in self._entering]

    def capture(self, leaving: list[Tensor]) -> None:
        """Take the residual."""
        residuals = self._residuals(leaving)
        what = f"the block stack of {type(self.network).__name__}"
        self.leave(pack(residuals, self.rows, what, self._together))
        self._entering = []

    @property
    def entered(self) -> list[Tensor]:
        """What entered the stack in this pass.

        Raises:
            RunError: the first block did not run.
        """
        if not self._entering:
            raise RunError(
                f"this call of {type(self.network).__name__} left its block stack without having entered it: its first "
                "block did not run. A pass that skips layers for guidance must not skip the first or the last"
            )
        return self._entering

    def _residuals(self, leaving: list[Tensor]) -> list[Tensor]:
        pairs = zip(self.adapter.streams, self.entered, leaving, self._versions, strict=True)
        for stream, entered, left, version in pairs:
            if writes_so_far(entered) != version or entered.data_ptr() == left.data_ptr():
                raise InputError(
                    f"the blocks of {type(self.network).__name__} change the stream {stream!r} in place, so that what "
                    "entered them is gone. Let its first block copy the stream, or use site='output'"
                )
            if left.shape != entered.shape:
                raise InputError(
                    f"stream {stream!r} of {type(self.network).__name__} enters its blocks as "
                    f"{tuple(entered.shape)} and leaves them as {tuple(left.shape)}; there is no residual to remember. "
                    "Its adapter has to say which part of it is the stream"
                )
        return [left - entered for left, entered in zip(leaving, self.entered, strict=True)]

    def replaced(self) -> list[Tensor]:
        """Return what leaves the stack instead: what entered plus the remembered residual."""
        residuals = unpack(self.replacement, self.entered, self.rows, self._together)
        streams = [entered + residual for entered, residual in zip(self.entered, residuals, strict=True)]
        self.leave(None)
        self._entering = []
        return streams

    def _stream(self, arguments: Mapping[str, Any], name: str) -> Tensor:
        value = arguments.get(name)
        if not isinstance(value, Tensor):
            raise InputError(
                f"the first block of {type(self.network).__name__} got {name}={type(value).__name__}; its adapter says "
                "that this is a stream, which is a tensor (B, ...)"
            )
        what = f"stream {name!r} of {type(self.network).__name__}"
        self.check_order(copies_of(value, self.rows, what), what, known=self.adapter.rows_a_sample is not None)
        return value

    def _rows_a_sample(self) -> int:
        """Return how many rows of a stream stand next to each other for a sample."""
        count, x = self.adapter.rows_a_sample, self.latent
        return 1 if count is None or x is None else count(x)

    def _source(self, name: str) -> BlockSignal | OutputOf | Signal:
        own = self.adapter.signals.get(name)
        return self._registered[name] if own is None else own

    def _signal(self, name: str, arguments: Mapping[str, Any]) -> Tensor:
        source = self._source(name)
        with torch.no_grad():
            if isinstance(source, OutputOf):
                if name not in self._seen:
                    raise InputError(
                        f"signal {name!r} of {type(self.network).__name__}: its source {source.path!r} did not run "
                        "before the blocks; correct the adapter"
                    )
                value = self._seen.pop(name)
            else:
                with weights_at_hand(self._first):
                    value = self._read(source, arguments)
        return read_signal(name, value, self.rows, type(self.network).__name__, self._together)

    def _read(self, source: BlockSignal | Signal, arguments: Mapping[str, Any]) -> Tensor:
        if not isinstance(source, Signal):
            return source(self._first, arguments)
        return source.read(self.signal_input(self._first, arguments))

    def _release(self) -> None:
        super()._release()
        self._entering = []
        self._seen.clear()


class Between:
    """The gate of a block inside the stack: on a reuse it hands on what it was given."""

    def __init__(self, bypass: Bypass, block: nn.Module, hands_on: HandsOn) -> None:
        self.bypass, self.block, self.hands_on = bypass, block, hands_on
        self.names = ArgumentNames(block)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve ``block(*args, **kwargs)``."""
        if not self.bypass.on:
            return proceed(*args, **kwargs)
        return handed_on(self.hands_on, self.block, self.names.bind(args, kwargs))


class _Edge(GateOfSite):
    """The gate of the first block, of the last, or of an only one."""

    def __init__(self, site: BlocksSite, block: nn.Module, blocks: Blocks, *, first: bool, last: bool) -> None:
        super().__init__(site)
        self.block, self.blocks, self.first, self.last = block, blocks, first, last
        self.names = ArgumentNames(block)
        self.positions = _return_positions(site.adapter, blocks) if last else []

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the engine decide where the stack begins, and take or replace what leaves it where it ends."""
        site = self.site
        if self.first:
            site.enter(self.names.bind(args, kwargs))
        if not site.replacing:
            output = resume(proceed)(*args, **kwargs)
            if self.last:
                site.capture(self._leaving(output))
            return output
        handed = handed_on(self.blocks.hands_on, self.block, self.names.bind(args, kwargs))
        return self._with_streams(handed, site.replaced()) if self.last else handed

    def _leaving(self, output: Any) -> list[Tensor]:
        """Return the streams from what the last block returned."""
        leaving = []
        for stream, position, entered in zip(self.site.adapter.streams, self.positions, self.site.entered, strict=True):
            value = output if position is None else output[position]
            if not isinstance(value, Tensor):
                raise InputError(
                    f"the last block of {type(self.site.network).__name__} returned a {type(value).__name__} where its "
                    f"adapter expects the stream {stream!r}; correct `hands_on` of {self.blocks.path!r}"
                )
            tokens = entered.shape[1]
            if self.blocks.part != "all":
                value = value[:, :tokens] if self.blocks.part == "head" else value[:, value.shape[1] - tokens :]
            leaving.append(value)
        return leaving

    def _with_streams(self, handed: Any, streams: list[Tensor]) -> Any:
        """Return what the last block would return, with the streams in their places."""
        for position, value in zip(self.positions, streams, strict=True):
            joined = handed if position is None else handed[position]
            if self.blocks.part == "head":
                value = torch.cat([value, joined[:, value.shape[1] :]], dim=1)
            elif self.blocks.part == "tail":
                value = torch.cat([joined[:, : joined.shape[1] - value.shape[1]], value], dim=1)
            handed = value if position is None else (*handed[:position], value, *handed[position + 1 :])
        return handed


class _End(GateOfSite):
    """The gate of the module in front of which the stack ends."""

    def __init__(self, site: BlocksSite, names: ArgumentNames) -> None:
        super().__init__(site)
        self.names = names

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take or replace what leaves the stack."""
        name = self.names.positional[0]
        given = args[0] if args else kwargs[name]
        if self.site.replacing:
            (given,) = self.site.replaced()
            args, kwargs = (given, *args[1:]), {key: value for key, value in kwargs.items() if key != name}
        else:
            self.site.capture([given])
        return resume(proceed)(*args, **kwargs)


class _Tap(ServedApart):
    """The gate of a module whose output is a signal; one module may serve several."""

    def __init__(self, seen: dict[str, Tensor], name: str, source: OutputOf, inner: Handler | None) -> None:
        self.seen, self.name, self.source, self.inner = seen, name, source, inner

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keep what the module returns."""
        run = resume(proceed)
        output = run(*args, **kwargs) if self.inner is None else self.inner(run, args, kwargs)
        self.seen[self.name] = output if self.source.pick is None else output[self.source.pick]
        return output


def refuse_frozen_graphs(network: nn.Module) -> None:
    """Refuse modules whose submodules do not run as Python modules any more.

    Raises:
        SettingsError: the network is scripted, traced or exported.
    """
    if isinstance(network, (torch.jit.ScriptModule, fx.GraphModule)):
        raise SettingsError(
            f"the model is a {type(network).__name__}: its blocks run inside one graph, where nothing can be skipped. "
            "Enable the cache on the eager model and compile with torch.compile, or use site='output'"
        )


def handed_on(hands_on: HandsOn, block: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Return what a bypassed block returns, see `cachepolicies.adapters.Blocks`."""
    if isinstance(hands_on, str):
        return arguments[hands_on]
    if isinstance(hands_on, tuple):
        return tuple(arguments.get(name) for name in hands_on)
    return hands_on(block, arguments)


def _return_positions(adapter: Adapter, blocks: Blocks) -> list[int | None]:
    """Return where in the return value of the last block each stream is, ``None`` where it is returned alone.

    Raises:
        SettingsError: a stream is not in it.
    """
    hands_on = blocks.hands_on
    positions: list[int | None] = []
    for stream in adapter.streams:
        if isinstance(hands_on, tuple) and stream in hands_on:
            positions.append(hands_on.index(stream))
        elif hands_on == stream:
            positions.append(None)
        else:
            raise SettingsError(
                f"adapter of {adapter.model!r}: the last blocks, {blocks.path!r}, hand on {hands_on!r}, in which the "
                f"stream {stream!r} is not; name the streams there, or set `ends_before`"
            )
    return positions
