"""Processes of one thread each, where a configuration stays with the process that remembers its evaluations."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from types import TracebackType
from typing import TypeAlias, TypeVar

from configurations import Configuration
from measure import Study

_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000:glibc.malloc.hugetlb=1"
"""Keep what the network frees instead of returning it to the system and asking again: a fifth of its time."""

T = TypeVar("T")
Task: TypeAlias = "tuple[Configuration, T]"


class Lanes:
    """Several processes and, for every configuration, the one that has begun with it.

    A process that helps another one out remembers what it evaluates itself, and nothing of the other's.
    """

    def __init__(self, study: Study, count: int) -> None:
        # a fresh interpreter each: threads of torch do not survive a fork
        os.environ.setdefault("GLIBC_TUNABLES", _MEMORY)  # read when they start
        context = multiprocessing.get_context("spawn")
        self._study = study
        self._pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(count)]
        self._lane: dict[Configuration, int] = {}

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def run(self, work: Callable[[Study, T], str], tasks: Sequence[Task[T]]) -> Iterator[str]:
        """Do the work of all tasks, about in their order; yield what each one returns, as it ends.

        A lane takes the first task of a configuration that is its own or nobody's, and one of another lane rather than
        stand still.
        """
        waiting = list(tasks)
        running: dict[Future[str], int] = {}
        for lane in range(len(self._pools)):
            self._begin(lane, work, waiting, running)
        while running:
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                lane, said = running.pop(ended), ended.result()
                self._begin(lane, work, waiting, running)
                yield said

    def _begin(
        self, lane: int, work: Callable[[Study, T], str], waiting: list[Task[T]], running: dict[Future[str], int]
    ) -> None:
        if not waiting:
            return
        own = (task for task in waiting if self._lane.get(task[0], lane) == lane)
        task = next(own, waiting[0])
        waiting.remove(task)
        self._lane.setdefault(task[0], lane)
        running[self._pools[lane].submit(work, self._study, task[1])] = lane
