"""The block stack as the site: the embedding and the head run at every step, the blocks only when they are evaluated.

What is remembered is the residual, *what leaves the stack minus what entered it*, and a skipped evaluation continues
with *input + residual*: where the authors of SenCache (arXiv 2602.24208), TeaCache (2411.19108) and MagCache
(2506.09045) cut in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cachepolicies._errors import InputError, RunError, SettingsError
from cachepolicies.adapters.base import Adapter, Blocks, HandsOn, OutputOf, submodule
from cachepolicies.sites._arguments import ArgumentNames
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import Resume, apart
from cachepolicies.sites._inside import InsideSite
from cachepolicies.sites._rows import by_sample, copies_of, pack, unpack
from cachepolicies.sites._weights import weights_at_hand


class BlocksSite(InsideSite):
    """Cuts around the block stack that an adapter describes."""

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        """Find the modules.

        Raises:
            SettingsError: the adapter names a module or an argument that the network does not have.
        """
        super().__init__(network, "blocks")
        self.adapter = adapter
        self._entering: list[Tensor] = []
        self._versions: list[int] = []
        self._seen: dict[str, Tensor] = {}
        self._resolve()

    def _resolve(self) -> None:
        """Build the gates for the modules that the network has now."""
        network, adapter = self.network, self.adapter
        blocks = _blocks_of(network, adapter)
        self._first, first = blocks[0]
        names = ArgumentNames(self._first)
        for stream in adapter.streams:
            if stream not in names.all:
                raise SettingsError(
                    f"adapter of {adapter.model!r}: the first block, a {type(self._first).__name__} in {first.path!r}, "
                    f"has no argument {stream!r}; its arguments are {', '.join(names.all)}"
                )
        ends, last = adapter.ends_before, len(blocks) - 1
        self._members = self._current_members()
        self._handlers: dict[nn.Module, Handler] = {}
        self._with_taps: dict[frozenset[str], Mapping[nn.Module, Handler]] = {}
        for place, (block, kind) in enumerate(blocks):
            is_last = place == last and ends is None
            if place == 0 or is_last:
                self._handlers[block] = _Edge(self, block, kind, first=place == 0, last=is_last)
            else:
                self._handlers[block] = _Between(self, block, kind.hands_on)
        if ends is not None:
            end = submodule(network, ends, f"adapter of {adapter.model!r}")
            self._handlers[end] = _End(self, ArgumentNames(end))

    def _current_members(self) -> list[nn.Module]:
        members = [block for block, _ in _blocks_of(self.network, self.adapter)]
        paths = [self.adapter.ends_before, *(s.path for s in self.adapter.signals.values() if isinstance(s, OutputOf))]
        return members + [submodule(self.network, path, "adapter") for path in paths if path is not None]

    @property
    def signals(self) -> frozenset[str]:
        """Names of the values that the adapter can supply."""
        return frozenset(self.adapter.signals)

    def handlers(self, signals: frozenset[str]) -> Mapping[nn.Module, Handler]:
        """Return the gates of the stack, and of the modules whose outputs are wanted as signals."""
        if self._members != self._current_members():  # LoRA wraps modules, and unwraps them
            self._resolve()
        found = self._with_taps.get(signals)
        if found is None:
            taps: dict[nn.Module, Handler] = {}
            for name in sorted(signals):
                source = self.adapter.signals[name]
                if isinstance(source, OutputOf):
                    tapped = submodule(self.network, source.path, f"signal {name!r} of {self.adapter.model!r}")
                    taps[tapped] = _Tap(self._seen, name, source, taps.get(tapped))
            found = self._with_taps[signals] = {**taps, **self._handlers}
        return found

    # -- for the gates --------------------------------------------------------------------------------------------

    def enter(self, arguments: Mapping[str, Any]) -> None:
        """Note what enters the stack, and let the engine decide."""
        self._take(arguments)
        passage = self._passage
        wanted = passage.needs_signals if passage is not None and self._pass.mode == "ask" else frozenset()
        self.arrive({name: self._signal(name, arguments) for name in wanted})

    def _take(self, arguments: Mapping[str, Any]) -> None:
        self._entering = [self._stream(arguments, stream) for stream in self.adapter.streams]
        self._versions = [_version(tensor) for tensor in self._entering]

    def capture(self, leaving: list[Tensor]) -> None:
        """Take the residual."""
        residuals = self._residuals(leaving)
        self.leave(pack(residuals, self.rows, f"the block stack of {type(self.network).__name__}"))
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
            if _version(entered) != version or entered.data_ptr() == left.data_ptr():
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
        residuals = unpack(self.replacement, self.entered, self.rows)
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
        copies_of(value, self.rows, f"stream {name!r} of {type(self.network).__name__}")
        return value

    def _signal(self, name: str, arguments: Mapping[str, Any]) -> Tensor:
        source = self.adapter.signals[name]
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
                    value = source(self._first, arguments)
        value = value.detach()
        if value.ndim and value.shape[0] == 1 != self.rows:  # one noise level for the whole batch
            value = value.expand(self.rows, *value.shape[1:])
        return by_sample(value, self.rows, f"signal {name!r} of {type(self.network).__name__}")

    def _release(self) -> None:
        super()._release()
        self._entering = []
        self._seen.clear()


class _Between:
    """The gate of a block inside the stack: on a reuse it hands on what it was given."""

    def __init__(self, site: BlocksSite, block: nn.Module, hands_on: HandsOn) -> None:
        self.site, self.block, self.hands_on = site, block, hands_on
        self.names = ArgumentNames(block)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.site.replacing:
            return proceed(*args, **kwargs)
        return _handed_on(self.hands_on, self.block, self.names.bind(args, kwargs))


class _Edge:
    """The gate of the first block, of the last, or of an only one."""

    def __init__(self, site: BlocksSite, block: nn.Module, blocks: Blocks, *, first: bool, last: bool) -> None:
        self.site, self.block, self.blocks, self.first, self.last = site, block, blocks, first, last
        self.names = ArgumentNames(block)
        self.places = _places(site.adapter, blocks) if last else []
        self._apart = apart(self._serve)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._apart(proceed, args, kwargs)

    def _serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site = self.site
        if self.first:
            site.enter(self.names.bind(args, kwargs))
        if not site.replacing:
            output = resume(proceed)(*args, **kwargs)
            if self.last:
                site.capture(self._leaving(output))
            return output
        handed = _handed_on(self.blocks.hands_on, self.block, self.names.bind(args, kwargs))
        return self._with_streams(handed, site.replaced()) if self.last else handed

    def _leaving(self, output: Any) -> list[Tensor]:
        """Return the streams from what the last block returned."""
        leaving = []
        for stream, place, entered in zip(self.site.adapter.streams, self.places, self.site.entered, strict=True):
            value = output if place is None else output[place]
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
        for place, value in zip(self.places, streams, strict=True):
            joined = handed if place is None else handed[place]
            if self.blocks.part == "head":
                value = torch.cat([value, joined[:, value.shape[1] :]], dim=1)
            elif self.blocks.part == "tail":
                value = torch.cat([joined[:, : joined.shape[1] - value.shape[1]], value], dim=1)
            handed = value if place is None else (*handed[:place], value, *handed[place + 1 :])
        return handed


class _End:
    """The gate of the module in front of which the stack ends."""

    def __init__(self, site: BlocksSite, names: ArgumentNames) -> None:
        self.site, self.names = site, names
        self._apart = apart(self._serve)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._apart(proceed, args, kwargs)

    def _serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.names.positional[0]
        given = args[0] if args else kwargs[name]
        if self.site.replacing:
            (given,) = self.site.replaced()
            args, kwargs = (given, *args[1:]), {key: value for key, value in kwargs.items() if key != name}
        else:
            self.site.capture([given])
        return resume(proceed)(*args, **kwargs)


class _Tap:
    """The gate of a module whose output is a signal; one module may serve several."""

    def __init__(self, seen: dict[str, Tensor], name: str, source: OutputOf, inner: Handler | None) -> None:
        self.seen, self.name, self.source, self.inner = seen, name, source, inner
        self._apart = apart(self._serve)

    def __call__(self, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._apart(proceed, args, kwargs)

    def _serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = resume(proceed)
        output = run(*args, **kwargs) if self.inner is None else self.inner(run, args, kwargs)
        self.seen[self.name] = output if self.source.pick is None else output[self.source.pick]
        return output


def _blocks_of(network: nn.Module, adapter: Adapter) -> list[tuple[nn.Module, Blocks]]:
    found: list[tuple[nn.Module, Blocks]] = []
    for blocks in adapter.stack:
        module = submodule(network, blocks.path, f"adapter of {adapter.model!r}")
        members = list(module) if isinstance(module, nn.ModuleList) else [module]
        found += [(block, blocks) for block in members]
    if not found:
        paths = ", ".join(blocks.path for blocks in adapter.stack)
        raise SettingsError(f"adapter of {adapter.model!r}: {paths} of this {type(network).__name__} hold no block")
    return found


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 for inference tensors, which do not say."""
    return 0 if tensor.is_inference() else tensor._version


def _handed_on(hands_on: HandsOn, block: nn.Module, arguments: Mapping[str, Any]) -> Any:
    if isinstance(hands_on, str):
        return arguments[hands_on]
    if isinstance(hands_on, tuple):
        return tuple(arguments.get(name) for name in hands_on)
    return hands_on(block, arguments)


def _places(adapter: Adapter, blocks: Blocks) -> list[int | None]:
    """Return where in the return value of the last block each stream is, ``None`` where it is returned alone.

    Raises:
        SettingsError: a stream is not in it.
    """
    hands_on = blocks.hands_on
    places: list[int | None] = []
    for stream in adapter.streams:
        if isinstance(hands_on, tuple) and stream in hands_on:
            places.append(hands_on.index(stream))
        elif hands_on == stream:
            places.append(None)
        else:
            raise SettingsError(
                f"adapter of {adapter.model!r}: the last blocks, {blocks.path!r}, hand on {hands_on!r}, in which the "
                f"stream {stream!r} is not; name the streams there, or set `ends_before`"
            )
    return places
