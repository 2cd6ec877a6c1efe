"""Several modules as the site, each a place of its own: what each returns is remembered, and handed out in its place.

Every block, every attention layer, a range of blocks: whatever modules a site names. The samples of a batch go on
together, so that a forward is never broken off: at each module in turn the engine is asked, and the module runs or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, RunError
from cachepolicies.contracts.signal import Signal
from cachepolicies.engine.call import Arrival
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.engine.turn import Turn
from cachepolicies.sites._gate import Handler
from cachepolicies.sites._graphs import GateOfSite, Resume
from cachepolicies.sites._places import PlacesSite, Underway, check_apart, check_some
from cachepolicies.sites._rows import by_sample, copies_of, pack, replace_tensors, tensors_in, unpack
from cachepolicies.sites._whereabouts import Whereabouts

AGAIN = "#"
"""Between the path of a module and the number of its call, in the name of a place: ``"blocks.0.ff#2"``."""


@frozen(eq=False)
class OutputTensors:
    """The form of a module's output without its tensors: what is needed to return the same type again.

    Attributes:
        form: the output with empty tensors.
        shapes: of its tensors, with the number of copies of the caller's batch in the place of the batch.
        alone: shape of an output that is one tensor and nothing else, with the caller's batch once; ``None`` for any
            other.
    """

    form: Any
    shapes: tuple[tuple[int, ...], ...]
    alone: torch.Size | None = None

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
        packed = pack(tensors, rows, what)
        return cls(form, shapes, output.shape if type(output) is Tensor and packed is output else None), packed

    def filled(self, packed: Tensor, rows: int) -> Any:
        """Return an output of the same form with these tensors."""
        if self.alone == packed.shape:
            return packed
        like = [torch.empty((copies * rows, *rest), dtype=packed.dtype, device="meta") for copies, *rest in self.shapes]
        return replace_tensors(self.form, unpack(packed, like, rows))


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, module: str) -> Tensor | None:
    """Return the first tensor with the caller's batch among a module's arguments, ``(rows, ...)``, if there is one."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim and value.shape[0] and not value.shape[0] % rows:
            return by_sample(value.detach(), rows, f"the input of {module!r}")
    return None


class ModulesSite(PlacesSite[Underway]):
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
        find: Callable[[], Mapping[str, nn.Module]] | None = None,
    ) -> None:
        """Take the modules.

        Args:
            name: of the site.
            network: that the modules are in.
            modules: by the name of their place, in the order in which they run. One that runs several times in a call
                has as many places.
            signals: read from the latent and t, by name; see `cachepolicies.sites.outside_signals`.
            kinds: of the modules by place, ``"mlp"`` say, as far as they are known.
            find: returns the modules anew, where places are named by their paths: they are looked up again where LoRA
                has wrapped some, or others were exchanged.

        Raises:
            SettingsError: there is none, or one is inside another.
        """
        check_some(modules, name, network)
        check_apart(modules, name)
        super().__init__(name, network, signals)
        self._modules = dict(modules)
        self._kinds = dict(kinds or {})
        self.find = find
        self._note_modules()

    def _note_modules(self) -> None:
        self._arrivals = {place: Arrival(place) for place in self._modules}
        paths = () if self.find is None else (place.partition(AGAIN)[0] for place in self._modules)
        self._whereabouts = Whereabouts(self.network, paths)

    def find_again(self) -> None:
        """Find the modules at their paths."""
        if self.find is not None:
            self._modules = dict(self.find())
            self._note_modules()

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

    def begun(self, served: ServedCall, invocation: Invocation) -> Underway:
        """Return the state of a new call."""
        return Underway(served, invocation)

    def handlers(self) -> Mapping[nn.Module, Handler]:
        """Return a gate for each module."""
        places: dict[nn.Module, dict[int, str]] = {}
        for place, module in self._modules.items():
            _, _, number = place.partition(AGAIN)
            places.setdefault(module, {})[int(number) if number.isdecimal() else 1] = place
        return {module: _Around(self, module, of) for module, of in places.items()}

    def around(
        self,
        module: nn.Module,
        places: Mapping[int, str],
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Serve the next call of a module: run it, or return what stands in; a call that is no place runs.

        Raises:
            RunError: the module was called more often in this call than it has places.
        """
        now = self._underway[get_ident()]
        if now.aside:
            return run(*args, **kwargs)
        number = now.calls[module] = now.calls.get(module, 0) + 1
        place = places.get(number)
        if place is None:
            last = max(places)
            if number < last:
                return run(*args, **kwargs)
            first = places[last].partition(AGAIN)[0]
            raise RunError(
                f"place {places[last]!r} of site {self.name!r} was reached twice in one call of "
                f"{type(self.network).__name__}; a module that runs several times in a call needs a place for each: "
                f"{first + AGAIN + str(number)!r} would be its next"
            )
        now.reached.add(place)
        served, engine = now.served, now.served.engine
        if engine.looks_at_input or engine.signals:
            given = first_tensor(args, kwargs, now.rows, place) if engine.looks_at_input else None
            arrival = Arrival(place, given, self.read_signals(now, place))
        else:
            arrival = self._arrivals[place]
        try:
            turn = served.ask(arrival)
            if turn.whole:
                returned = run(*args, **kwargs) if now.counter is None else now.counting(place, run, args, kwargs)
                served.take(turn, _packed(served, turn, returned, now.rows))
                return returned
        except BaseException:
            served.fail()
            raise
        return self._carried_out(now, turn, partial(now.counting, place, run, args, kwargs))

    def _carried_out(self, now: Underway, turn: Turn, evaluate: Callable[[], Any]) -> Any:
        """Serve a place where something is reused."""
        place, exchange = turn.arrival.place, now.served.carry_out(turn)
        fresh: Tensor | None = None
        try:
            while True:
                try:
                    _ = next(exchange) if fresh is None else exchange.send(fresh)
                except StopIteration as done:
                    return now.served.kept(place).filled(done.value, now.rows)
                _, fresh = OutputTensors.taken(evaluate(), now.rows, place)  # of an audit
        finally:
            exchange.close()


def _packed(served: ServedCall, turn: Turn, output: Any, rows: int) -> Tensor:
    """Return the tensors of a module's output as one, ``(rows, ...)``, and keep the form where it is another."""
    form: OutputTensors | None = served.run.kept.get(turn.key)
    if form is not None and type(output) is Tensor and form.alone == output.shape:
        return output
    place = turn.arrival.place
    form, packed = OutputTensors.taken(output, rows, place)
    served.keep(place, form)
    return packed


class _Around(GateOfSite):
    """The gate of one module, and the places that its calls are, in turn."""

    def __init__(self, site: ModulesSite, module: nn.Module, places: Mapping[int, str]) -> None:
        super().__init__(site)
        self.module, self.places = module, places

    def serve(self, resume: Resume, proceed: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the site decide."""
        site: Any = self._site()
        return site.around(self.module, self.places, resume(proceed), args, kwargs)
