"""What the sites with several places in a call share: one call under way a thread, and what each place costs.

The samples of a batch go on together, so that a forward is never broken off: at each place in turn the engine is asked.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from cachepolicies.base.errors import RunError, SettingsError
from cachepolicies.contracts.signal import Signal, SignalInput
from cachepolicies.contracts.site import ResolvedSite
from cachepolicies.engine.call import WHOLE
from cachepolicies.engine.engine import ServedCall
from cachepolicies.engine.invocation import Invocation
from cachepolicies.sites._gate import Handler, gates
from cachepolicies.sites._graphs import compiling_around
from cachepolicies.sites._whereabouts import Whereabouts
from cachepolicies.sites.flops import CountedFlops, can_count
from cachepolicies.sites.signals import read_signal


class Underway:
    """The call that is being served in one thread.

    Attributes:
        served: decides, remembers and records.
        invocation: runs the denoiser.
        rows: of the caller's batch.
        reached: places that the forward has come to.
        calls: of modules that are places, so far.
        aside: whether the forward is run to look at only, an audit say: every place is computed, and none remembered.
    """

    def __init__(self, served: ServedCall, invocation: Invocation) -> None:
        self.served, self.invocation, self.rows = served, invocation, invocation.batch
        self.reached: set[str] = set()
        self.aside = False
        self.calls: dict[nn.Module, int] = {}
        self.counter: CountedFlops | None = None
        self.counted: dict[str, int] = {}

    @property
    def work(self) -> int:
        """FLOPs of the call so far, 0 where they are not counted."""
        return 0 if self.counter is None else self.counter.total

    def counting(self, place: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a place, and note what it does."""
        before = self.work
        output = run(*args, **kwargs)
        self.note_work(place, before)
        return output

    def note_work(self, place: str, before: int) -> None:
        """Note that a place has done what was done since ``before``."""
        if self.counter is not None:
            self.counted[place] = self.counter.total - before


U = TypeVar("U", bound=Underway)


class PlacesSite(ResolvedSite, Generic[U]):
    """Several places inside of a network, each with a memory of its own."""

    def __init__(self, name: str, network: nn.Module, signals: Mapping[str, Signal] | None = None) -> None:
        """Begin with nothing under way.

        Args:
            name: of the site.
            network: that the places are in.
            signals: read from the latent and t, by name; see `cachepolicies.sites.outside_signals`.
        """
        self.network = network
        self._name = name
        self._signals = dict(signals or {})
        self._shares: dict[str, float] = {}
        self._countable = True
        # Handlers are kept, one set a thread: the guards of compiled blocks ask for the same objects.
        self._handlers: WeakKeyDictionary[threading.Thread, Mapping[nn.Module, Handler]] = WeakKeyDictionary()
        self._underway: dict[int, U] = {}
        self._whereabouts = Whereabouts(network, ())
        self._lacking = False

    @property
    def name(self) -> str:
        """What the user wrote."""
        return self._name

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
        """The part of a call's work that each place does; measured on the first call that is evaluated."""
        return self._shares

    @abstractmethod
    def begun(self, served: ServedCall, invocation: Invocation) -> U:
        """Return the state of a new call."""

    @abstractmethod
    def handlers(self) -> Mapping[nn.Module, Handler]:
        """Return new gates, for one thread."""

    def find_again(self) -> None:
        """Find the places where they are now: modules were exchanged since; nothing by default."""

    def run(self, now: U, invocation: Invocation) -> Any:
        """Run the denoiser, with the gates at their modules."""
        return invocation.run(None)

    def over(self, now: U) -> None:
        """Look at a call after its forward.

        Raises:
            RunError: no place was reached.
        """
        if not now.reached:
            raise RunError(
                f"no place of site {self.name!r} of {type(self.network).__name__} was reached in a call: its modules "
                "ran where they cannot be intercepted (exported, traced or replaced after set-up)"
            )

    def left(self, now: U) -> None:
        """Let go of what belongs to a call, whether it went well or not."""

    @property
    def now(self) -> U:
        """The call under way in this thread."""
        return self._underway[threading.get_ident()]

    def serve(self, served: ServedCall, invocation: Invocation) -> Any:
        """Serve one call; see `ResolvedSite.serve`."""
        thread = threading.get_ident()
        now, handlers = self.begun(served, invocation), self._of_this_thread()
        self._underway[thread] = now
        try:
            with gates(handlers), self._measuring(now, invocation):
                output = self.run(now, invocation)
            self.over(now)
            if now.reached != {WHOLE}:  # of a call that was skipped as a whole nothing can be told
                self._lacking = not now.reached <= self._shares.keys()
            served.leave()
            return output
        except BaseException:
            served.request.reset()
            raise
        finally:
            self.left(now)
            self._underway.pop(thread, None)

    def read_signals(self, now: U, place: str, besides: Set[str] = frozenset()) -> dict[str, Tensor]:
        """Return the signals that are wanted at a place, besides those that it has found by itself."""
        served, signals = now.served, {}
        for name in served.wanted_signals(place) - besides:
            at = SignalInput(served.call.x, served.call.t, self.network, call=now.invocation.arguments)
            signals[name] = read_signal(name, self._signals[name].read(at), now.rows, place)
        return signals

    def _of_this_thread(self) -> Mapping[nn.Module, Handler]:
        thread = threading.current_thread()
        if not self._whereabouts.unchanged() and not self._underway:
            self.find_again()
            self._handlers = WeakKeyDictionary()
            self._shares.clear()
            self._countable = True
        found = self._handlers.get(thread)
        if found is None:
            found = self._handlers[thread] = self.handlers()
        return found

    @contextmanager
    def _measuring(self, now: U, invocation: Invocation) -> Iterator[None]:
        """On the first call of all, count what the whole call costs and what each place does."""
        if (
            (self._shares and not self._lacking)
            or not self._countable
            or not now.served.engine.reuses
            or compiling_around()
        ):
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
        elif now.counted.keys() >= now.reached:
            if counter.total:
                self._shares.update({place: counted / counter.total for place, counted in now.counted.items()})
            else:  # nothing that counts: asking again at every call would cost more than the call
                self._countable = False


def check_some(places: Mapping[str, Any], name: str, network: nn.Module) -> None:
    """Refuse a site without a place.

    Raises:
        SettingsError: there is none.
    """
    if not places:
        raise SettingsError(f"site {name!r} has no place in this {type(network).__name__}: no module was chosen")


def check_apart(modules: Mapping[str, nn.Module], name: str) -> None:
    """Refuse a site of which one module is inside another: what it does would be skipped, and counted, twice.

    Raises:
        SettingsError: one is.
    """
    places = {module: place for place, module in modules.items()}
    for place, module in modules.items():
        inside = next((places[below] for below in module.modules() if below is not module and below in places), None)
        if inside is not None:
            raise SettingsError(
                f"site {name!r}: its place {inside!r} is inside of its place {place!r}; choose one of the two"
            )
