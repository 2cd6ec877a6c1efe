"""The handle of a declared run, the same for every way in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from attrs import define, field

from cachepolicies.base.errors import RunError
from cachepolicies.engine.call import Declaration
from cachepolicies.engine.lifecycle import Request
from cachepolicies.engine.requests import Requests, calling_frame
from cachepolicies.engine.trace import Trace, joined


@define(eq=False)
class DeclaredRun:
    """A declared run of one denoiser.

    Attributes:
        requests: of the denoiser.
        request: of this run alone.
        declaration: what was said of it.
        name: of the denoiser, where a handle has several.
    """

    requests: Requests[Any]
    request: Request
    declaration: Declaration
    name: str = ""
    _entry: Any = field(default=None, init=False)

    def enter(self, frame: Any) -> None:
        """Begin the run, for what a frame calls."""
        self.request.begin(self.declaration)
        self._entry = self.requests.open(self.request, frame)

    def leave(self, failed: bool) -> None:
        """End the run and forget it."""
        self.requests.close(self._entry)
        self._entry = None  # it has the caller's frame, with everything in it
        if failed:
            self.request.reset()
            self.request.end()
        else:
            self.request.finish()


class RunHandle:
    """One declared run: a context that gives itself. What its trace has, it has too.

    The run belongs to the code inside the ``with`` and to what that calls. Nobody else has part in it: not another
    thread, task or generator, nor a bare caller of the same denoiser.
    """

    def __init__(self, runs: Sequence[DeclaredRun], function: Callable[..., Any]) -> None:
        """Take what the handle is of.

        Args:
            runs: one for every denoiser.
            function: the denoiser as it is called; of several, the one that the handle calls.
        """
        self._runs = tuple(runs)
        self._function = function
        self._open = False
        self._used = False

    @property
    def trace(self) -> Trace:
        """The record of this run; of several denoisers, one behind the other."""
        return joined([(run.name, run.request.trace) for run in self._runs])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser in this run, wherever the call stands.

        Raises:
            RunError: the run is not open.
        """
        with self._belonging():
            return self._function(*args, **kwargs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the calls inside the context belong to this run, wherever they stand.

        Raises:
            RunError: the run is not open.
        """
        with self._belonging():
            yield

    @contextmanager
    def _belonging(self) -> Iterator[None]:
        if not self._open:
            raise RunError("this run is not open; call it inside its `with denoiser.run(...) as run:`")
        frame = calling_frame(1)  # looks through this context: the frame of `__call__`, or of the user's ``with``
        with ExitStack() as stack:
            for run in self._runs:
                stack.enter_context(run.requests.named(run.request, frame))
            yield

    def __getattr__(self, name: str) -> Any:
        """Return what the trace has: ``run.nfe``, ``run.records``, ``run.summary()``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.trace, name)

    def __str__(self) -> str:
        return str(self.trace)

    def __enter__(self) -> RunHandle:
        """Begin the run.

        Raises:
            RunError: the handle was used before: every run has its own.
        """
        if self._used:
            raise RunError("this run was entered before; declare another: `with denoiser.run(...)`")
        frame = calling_frame(2)
        entered: list[DeclaredRun] = []
        try:
            for run in self._runs:
                run.enter(frame)
                entered.append(run)
        except BaseException:
            for run in entered:
                run.leave(failed=True)
            raise
        self._open = self._used = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run; nothing of it is remembered."""
        self._open = False
        with ExitStack() as stack:  # what one run's end warns of must not keep another from ending
            for run in self._runs:
                stack.callback(run.leave, failed=error is not None)
