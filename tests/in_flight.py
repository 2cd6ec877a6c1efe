"""Generations in flight: one script of calls, driven by a handle, a generator, a thread or an asyncio task."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn


class FailedError(Exception):
    """What the network raises when it is told to."""


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which pytest takes for its own."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.layer(hidden_states))


class Network(nn.Module):
    """Four blocks; a call may be told to fail on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x: Tensor, t: Any, c: Tensor | None = None, boom: type[BaseException] | None = None) -> Tensor:
        hidden = x + torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1)) / 1000
        for number, block in enumerate(self.blocks):
            if boom is not None and number == 2:
                raise boom("told to")
            hidden = block(hidden)
        return hidden if c is None else hidden + c


def network() -> Network:
    """Return the network, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().requires_grad_(False)


@frozen
class Script:
    """What one generation does.

    Attributes:
        seed: of its latents.
        rows: of its batch.
        timesteps: of its run.
        branches: names at every step; `None` names none.
        left_out: steps at which only the first branch is called.
        declared: whether the run is declared.
        jump: step after which it goes back to the first, once; `None` never.
        reshape: step at which the batch gets another number of rows; `None` never.
        boom: step at whose first call the network is told to fail, and with what; `None` never.
    """

    seed: int
    rows: int
    timesteps: tuple[float, ...]
    branches: tuple[str | None, ...] = (None,)
    left_out: frozenset[int] = frozenset()
    declared: bool = True
    jump: int | None = None
    reshape: int | None = None
    boom: tuple[int, type[BaseException]] | None = None

    def latent(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(rows, 4, generator=generator)

    def steps(self) -> list[int]:
        order = list(range(len(self.timesteps)))
        return order if self.jump is None else [*order[: self.jump + 1], *order]


def outputs_of(script: Script, call: Callable[..., Tensor]) -> Iterator[Tensor | str]:
    """Yield what every call gives: a tensor, or the name of what it raised."""
    rows = script.rows
    x = script.latent(rows)
    for number, step in enumerate(script.steps()):
        if number == script.reshape:
            rows = rows % 3 + 1
            x = script.latent(rows)
        t = script.timesteps[step]
        for place, branch in enumerate(script.branches):
            if place and step in script.left_out:
                continue
            named: dict[str, Any] = (
                {} if branch is None else {"branch": branch, "c": torch.full((rows, 4), float(place))}
            )
            if script.boom is not None and script.boom[0] == number and place == 0:
                named["boom"] = script.boom[1]
            try:
                output: Tensor | str = call(x, t, **named).clone()
            except (FailedError, Interrupted) as error:
                output = type(error).__name__
            yield output
            if isinstance(output, Tensor):
                x = x - 0.1 * output


@define(eq=False)
class InFlight:
    """A generation that is driven call by call.

    Attributes:
        script: what it does.
        found: what its calls gave.
        over: whether it has come to its end.
    """

    script: Script
    found: list[Tensor | str] = field(factory=list)
    over: bool = False

    def advance(self) -> None:
        """Make one call."""
        ...

    def close(self) -> None:
        """Break it off, wherever it is."""
        ...


def declared(subject: Any, script: Script) -> Any:
    """Return the context of the script's run."""
    return subject.run(timesteps=script.timesteps) if script.declared else contextlib.nullcontext()


class ByGenerator(InFlight):
    """A generator that holds its run open between its calls."""

    def __init__(self, subject: Any, call: Callable[..., Tensor], script: Script) -> None:
        super().__init__(script)
        self._calls = self._generate(subject, call, script)

    @staticmethod
    def _generate(subject: Any, call: Callable[..., Tensor], script: Script) -> Iterator[Tensor | str]:
        with declared(subject, script):
            yield from outputs_of(script, call)

    def advance(self) -> None:
        try:
            self.found.append(next(self._calls))
        except StopIteration:
            self.over = True

    def close(self) -> None:
        self._calls.close()  # type: ignore[attr-defined]  # a generator's


class ByHandle(InFlight):
    """A run that is called through its handle, from wherever."""

    def __init__(self, subject: Any, call: Callable[..., Tensor], script: Script) -> None:
        super().__init__(script)
        self._run = subject.run(timesteps=script.timesteps)
        self._run.__enter__()
        self._calls = outputs_of(script, self._run)

    def advance(self) -> None:
        try:
            self.found.append(next(self._calls))
        except StopIteration:
            self.over = True
            self._run.__exit__(None, None, None)

    def close(self) -> None:
        self._run.__exit__(FailedError, FailedError(), None)


class ByThread(InFlight):
    """A thread that makes a call when it is told to."""

    def __init__(self, subject: Any, call: Callable[..., Tensor], script: Script) -> None:
        super().__init__(script)
        self._told: queue.Queue[bool] = queue.Queue()
        self._done: queue.Queue[BaseException | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, args=(subject, call, script), daemon=True)
        self._thread.start()

    def _work(self, subject: Any, call: Callable[..., Tensor], script: Script) -> None:
        try:
            with torch.no_grad(), declared(subject, script):
                calls = outputs_of(script, call)
                while self._told.get():
                    try:
                        self.found.append(next(calls))
                    except StopIteration:
                        self.over = True
                        break
                    self._done.put(None)
        except BaseException as error:  # handed to the test
            self._done.put(error)
            return
        self._done.put(None)

    def advance(self) -> None:
        self._told.put(True)
        error = self._done.get(timeout=60)
        if error is not None:
            raise error

    def close(self) -> None:
        self._told.put(False)
        self._thread.join(60)


class ByTask(InFlight):
    """An asyncio task that makes a call when it is told to."""

    def __init__(self, subject: Any, call: Callable[..., Tensor], script: Script, loop: Any) -> None:
        super().__init__(script)
        self._loop = loop
        self._told: asyncio.Queue[bool] = asyncio.Queue()
        self._done: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self._task = loop.create_task(self._work(subject, call, script))

    async def _work(self, subject: Any, call: Callable[..., Tensor], script: Script) -> None:
        try:
            with declared(subject, script):
                calls = outputs_of(script, call)
                while await self._told.get():
                    try:
                        self.found.append(next(calls))
                    except StopIteration:
                        self.over = True
                        break
                    await self._done.put(None)
        except BaseException as error:  # handed to the test
            await self._done.put(error)
            return
        await self._done.put(None)

    async def _step(self) -> BaseException | None:
        await self._told.put(True)
        return await self._done.get()

    def advance(self) -> None:
        error = self._loop.run_until_complete(self._step())
        if error is not None:
            raise error

    def close(self) -> None:
        async def end() -> None:
            await self._told.put(False)
            await self._task

        self._loop.run_until_complete(end())
