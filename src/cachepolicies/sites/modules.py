"""Several modules as the site, each a place of its own: what each returns is remembered, and handed out in its place.

Every block, every attention layer, a range of blocks: whatever modules a site names. The samples of a batch go on
together, so that a forward is never broken off: at each module in turn the engine is asked, and the module runs or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attrs import frozen
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, RunError, SettingsError
from cachepolicies.contracts.signal import Signal, SignalInput
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.engine.call import Arrival
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites._gate import Handler, gates
from cachepolicies.sites._graphs import GateOfSite, Resume, compiling_around
from cachepolicies.sites._rows import by_sample, copies_of, pack, replace_tensors, tensors_in, unpack
from cachepolicies.sites.flops import CountedFlops, can_count
from cachepolicies.sites.signals import read_signal

AGAIN = "#"
"""Between the path of a module and the number of its call, in the name of a place: ``"blocks.0.ff#2"``."""


@frozen(eq=False)
class OutputTensors:
    """The form of a module's output without its tensors: what is needed to return the same type again.

    Attributes:
        form: the output with empty tensors.
        shapes: of its tensors, with the number of copies of the caller's batch in the place of the batch.
    """

    form: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def taken(cls, output: Any, rows: int, module: str) -> tuple[OutputTensors, Tensor]:
        """Return the form of an output, and its tensors as one, ``(rows, ...)``.

        Raises:
            InputError: there is no tensor in it, or one without the batch.
        """
        tensors = tensors_in(output)
        if not tensors:
            raise InputError(f"module {module!r} returned {type(output).__name__} without a tensor to remember")
        what = f"the output of {module!r}"
        form = replace_tensors(output, [tensor.new_empty(0) for tensor in tensors])
        shapes = tuple((copies_of(tensor, rows, what), *tensor.shape[1:]) for tensor in tensors)
        return cls(form, shapes), pack(tensors, rows, what)

    def filled(self, packed: Tensor, rows: int) -> Any:
        """Return an output of the same form with these tensors."""
        like = [torch.empty((copies * rows, *rest), dtype=packed.dtype, device="meta") for copies, *rest in self.shapes]
        return replace_tensors(self.form, unpack(packed, like, rows))


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, module: str) -> Tensor | None:
    """Return the first tensor with the caller's batch among a module's arguments, ``(rows, ...)``, if there is one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim and value.shape[0] and not value.shape[0] % rows:
            return by_sample(value.detach(), rows, f"the input of {module!r}")
    return None


class _Underway:
    """The call that is being served in one thread."""

    def __init__(self, served: ServedCall, invocation: Invocation) -> None:
        self.served, self.invocation, self.rows = served, invocation, invocation.batch
        self.reached: set[str] = set()
        self.counter: CountedFlops | None = None
        self.counted: dict[str, int] = {}


class ModulesSite(ResolvedSite):
    """The outputs of several modules of a network, one place each, by the names that the site gives them.

    A module that a call does not reach is passed over. Modules that write somewhere else than into their output (key
    and value memories) must not be among them.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        modules: Mapping[str, nn.Module],
        signals: Mapping[str, Signal] | None = None,
        *,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        """Take the modules.

        Args:
            name: of the site.
            network: that the modules are in.
            modules: by the name of their place, in the order in which they run. One that runs several times in a call
                has as many places.
            signals: read from the latent and t, by name; see `cachepolicies.sites.outside_signals`.
            kinds: of the modules by place, ``"mlp"`` say, as far as they are known.

        Raises:
            SettingsError: there is none.
        """
        if not modules:
            raise SettingsError(f"site {name!r} has no place in this {type(network).__name__}: no module was chosen")
        self.network = network
        self._name = name
        self._signals = dict(signals or {})
        self._modules = dict(modules)
        self._kinds = dict(kinds or {})
        self._shares: dict[str, float] = {}
        self._countable = True
        # Handlers are kept, one set a thread: the guards of compiled blocks ask for the same objects.
        self._handlers: WeakKeyDictionary[threading.Thread, dict[nn.Module, _Around]] = WeakKeyDictionary()
        self._underway: dict[int, _Underway] = {}

    @property
    def name(self) -> str:
        """What the user wrote."""
        return self._name

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the modules."""
        return tuple(self._modules)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules by place."""
        return self._modules

    @property
    def kinds(self) -> Mapping[str, str]:
        """What each module does, as far as it is known."""
        return self._kinds

    @property
    def parts_rows(self) -> bool:
        """Never: the forward goes on with the whole batch."""
        return False

    @property
    def signals(self) -> frozenset[str]:
        """Those that need nothing from inside the model."""
        return frozenset(self._signals)

    @property
    def shares(self) -> Mapping[str, float]:
        """The part of a call's work that each module does; measured on the first call that is evaluated."""
        return self._shares

    def serve(self, served: ServedCall, invocation: Invocation) -> Any:
        """Serve one call; see `ResolvedSite.serve`."""
        thread = threading.get_ident()
        now = self._underway[thread] = _Underway(served, invocation)
        try:
            with gates(self._of_this_thread()), self._measuring(now, invocation):
                output = invocation.run(None)
            self._check_reached(now)
            served.leave()
            return output
        except BaseException:
            served.request.reset()
            raise
        finally:
            self._underway.pop(thread, None)

    def _of_this_thread(self) -> Mapping[nn.Module, Handler]:
        thread = threading.current_thread()
        found = self._handlers.get(thread)
        if found is None:
            places: dict[nn.Module, list[str]] = {}
            for place, module in self._modules.items():
                places.setdefault(module, []).append(place)
            found = self._handlers[thread] = {module: _Around(self, of) for module, of in places.items()}
        return found

    def around(
        self, places: list[str], run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Serve the next place of a module: run the module, or return what stands in.

        Raises:
            RunError: the module was called more often in this call than it has places.
        """
        now = self._underway[threading.get_ident()]
        place = next((each for each in places if each not in now.reached), None)
        if place is None:
            raise RunError(
                f"place {places[-1]!r} of site {self.name!r} was reached twice in one call of "
                f"{type(self.network).__name__}; a module that runs several times in a call needs a place for each: "
                f"{AGAIN.join((places[0], str(len(places) + 1)))!r} would be its next"
            )
        now.reached.add(place)
        exchange = now.served.exchange(self._arrival(now, place, args, kwargs))
        output, fresh = None, None
        try:
            while True:
                try:
                    wanted = next(exchange) if fresh is None else exchange.send(fresh)
                except StopIteration as done:
                    if output is not None:
                        return output
                    form = now.served.kept(place)
                    return form.filled(done.value, now.rows)
                before = 0 if now.counter is None else now.counter.total
                returned = run(*args, **kwargs)
                if now.counter is not None:
                    now.counted[place] = now.counter.total - before
                form, fresh = OutputTensors.taken(returned, now.rows, place)
                if not wanted.audit:
                    output = returned
                    now.served.keep(place, form)
        finally:
            exchange.close()

    def _arrival(self, now: _Underway, place: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arrival:
        served, signals = now.served, {}
        for name in served.wanted_signals(place):
            at = SignalInput(served.call.x, served.call.t, self.network, call=now.invocation.arguments)
            signals[name] = read_signal(name, self._signals[name].read(at), now.rows, place)
        given = first_tensor(args, kwargs, now.rows, place) if served.engine.looks_at_input else None
        return Arrival(place, given, signals)

    def _check_reached(self, now: _Underway) -> None:
        if not now.reached:
            raise RunError(
                f"no place of site {self.name!r} of {type(self.network).__name__} was reached in a call: its modules "
                "ran where they cannot be intercepted (exported, traced or replaced after set-up)"
            )

    @contextmanager
    def _measuring(self, now: _Underway, invocation: Invocation) -> Iterator[None]:
        """On the first call of all, count what the whole call costs and what each module does."""
        if self._shares or not self._countable or not now.served.engine.reuses or compiling_around():
            yield
            return
        if not can_count(invocation.function, self.network):
            self._countable = False
            yield
            return
        with CountedFlops() as counter:
            now.counter = counter
            yield
        if not counter.whole:
            self._countable = False
        elif counter.total:
            self._shares.update({place: counted / counter.total for place, counted in now.counted.items()})


class _Around(GateOfSite):
    """The gate of one module, and the places that its calls are, in turn."""

    def __init__(self, site: ModulesSite, places: list[str]) -> None:
        super().__init__(site)
        self.places = places

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the site decide."""
        return self.site.around(self.places, resume(proceed), args, kwargs)
