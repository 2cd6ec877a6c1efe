"""Which request a call belongs to: state is never shared between two generations in flight.

A run that is entered by ``with denoiser.run(...)`` belongs to the frame of that ``with``, and to what that frame calls.
That is what the words say to a reader, and it holds for threads, asyncio tasks and generators alike: another thread,
another task and another generator have another stack, on which the frame does not stand. A context variable would not
do: a generator shares its caller's context.

A caller that no declared run belongs to has a request of its own, one for each thread or asyncio task. Where two runs
cannot be told apart, the call is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from attrs import define, field, frozen

from cachepolicies.base.errors import RunError

R = TypeVar("R")

_CONTEXTLIB = contextlib.__name__
_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@frozen(eq=False)
class _Opened(Generic[R]):
    """A request that a frame has entered.

    Attributes:
        request: the request.
        frame: in which its ``with`` stands.
        execution: thread or task that entered it.
        named: whether the calls there were said to belong to this request, whatever else is open.
    """

    request: R
    frame: FrameType
    execution: object
    named: bool = False


@define(eq=False)
class Requests(Generic[R]):
    """The requests of one wrapper, or of one module that is used in place.

    Attributes:
        make: makes a request for a caller that has declared none.
        subject: what is called, for messages.
    """

    make: Callable[[], R]
    subject: str
    latest: R | None = None
    """The request that was used last."""

    _opened: list[_Opened[R]] = field(factory=list)
    _undeclared: WeakKeyDictionary[Any, R] = field(factory=WeakKeyDictionary)
    _lock: Any = field(factory=threading.Lock)

    @contextlib.contextmanager
    def named(self, request: R, frame: FrameType) -> Iterator[None]:
        """Have the calls of a frame belong to a request for the length of the context, whatever else is open there."""
        entry = self.open(request, frame, named=True)
        try:
            yield
        finally:
            self.close(entry)

    def open(self, request: R, frame: FrameType, *, named: bool = False) -> _Opened[R]:
        """Have a request belong to a frame from now on; see `calling_frame`."""
        entry = _Opened(request, frame, execution(), named)
        with self._lock:
            self._opened.append(entry)
        self.latest = request
        return entry

    def close(self, entry: _Opened[R]) -> None:
        """End what `open` began."""
        with self._lock:
            self._opened.remove(entry)

    def __deepcopy__(self, memo: dict[int, Any]) -> Requests[R]:
        """Return those of a copy: nothing is in flight there."""
        return Requests(copy.deepcopy(self.make, memo), self.subject)

    def current(self) -> R:
        """Return the request that the calling code belongs to, a new one where it has none.

        Raises:
            RunError: it belongs to several runs that are open at once.
        """
        opened = self._opened
        found = self._declared(list(opened)) if opened else None
        if found is None:
            found = self.undeclared()
        self.latest = found
        return found

    def undeclared(self) -> R:
        """Return the request of this thread or task that no run was declared for."""
        key = execution()
        found = self._undeclared.get(key)
        if found is None:
            found = self.make()
            with self._lock:
                self._undeclared[key] = found
        return found

    def all(self) -> list[R]:
        """Return every request in flight."""
        with self._lock:
            return [*(entry.request for entry in self._opened), *self._undeclared.values()]

    def _declared(self, opened: list[_Opened[R]]) -> R | None:
        frame: FrameType | None = sys._getframe(2)
        if len(opened) == 1:
            only = opened[0]
            while frame is not None:
                if frame is only.frame:
                    return only.request
                frame = frame.f_back
        frames = {id(entry.frame) for entry in opened}
        while frame is not None:
            if id(frame) in frames:
                return self._only([entry for entry in opened if entry.frame is frame])
            frame = frame.f_back
        # A run that was entered by a call that has returned, as by an ExitStack's, belongs to its thread or task.
        here = execution()
        left = [entry for entry in opened if entry.execution is here and _has_returned(entry.frame)]
        return self._only(left) if left else None

    def _only(self, entries: list[_Opened[R]]) -> R:
        named = [entry for entry in entries if entry.named]
        requests = {id(entry.request): entry.request for entry in named[-1:] or entries}
        if len(requests) > 1:
            raise RunError(
                f"{len(requests)} runs of {self.subject} are open here at once, and this call could belong to any of "
                "them. Call through the run's own handle: `with denoiser.run(...) as run:` and `run(x, t, ...)`, or "
                "put the call in `with run.active():`"
            )
        return next(iter(requests.values()))


def execution() -> object:
    """Return the asyncio task that is running, else the thread."""
    loop = asyncio._get_running_loop()
    task = None if loop is None else asyncio.current_task(loop)
    return threading.current_thread() if task is None else task


def calling_frame(depth: int) -> FrameType:
    """Return the frame in which a ``with`` stands, looking through the context managers of the standard library.

    Args:
        depth: of the caller's frame, as `sys._getframe` counts from here: 1 is who calls this function.
    """
    frame = sys._getframe(depth)
    while frame.f_back is not None:
        managed = frame.f_code.co_flags & _SUSPENDS and frame.f_back.f_globals.get("__name__") == _CONTEXTLIB
        if not managed and frame.f_globals.get("__name__") != _CONTEXTLIB:
            break
        frame = frame.f_back
    return frame


def generator_of(depth: int) -> int:
    """Return the identity of the innermost generator that the calling code runs in, 0 where there is none.

    Two generators that take turns look like one caller otherwise. A generator expression is none: it is over with the
    expression that it stands in.

    Args:
        depth: of the caller's frame, as in `calling_frame`.
    """
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        code = frame.f_code
        if code.co_flags & inspect.CO_GENERATOR and code.co_name != "<genexpr>":
            return id(frame)
        frame = frame.f_back
    return 0


def _has_returned(frame: FrameType) -> bool:
    """Return whether a function's frame is over. One that can be suspended and go on may not be looked at so."""
    if frame.f_code.co_flags & _SUSPENDS:
        return False
    try:
        frame.clear()
    except RuntimeError:  # it is still running, in this thread or another
        return False
    return True
