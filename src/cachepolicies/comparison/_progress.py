"""The progress of a comparison: a bar for each way of sampling on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

ReportProgress = Callable[[str, int, int], None]
"""Tells the progress bar: what is running, how many evaluations it has done, and how many it will."""

EVERY = 5.0
"""Seconds between two plain lines of one way of sampling."""


@contextlib.contextmanager
def progress_bar(
    show: bool, console: Console | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[ReportProgress]:
    if not show:
        yield lambda label, done, total: None
        return
    from rich.console import Console

    target = console or Console(stderr=True)
    # elsewhere than on a terminal rich shows a bar only when it is finished: a log would stay empty until the end
    with _bars(target) if target.is_terminal else _lines(target, clock) as report:
        yield report


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[ReportProgress]:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(escape(label), total=total)
            bar.update(tasks[label], completed=done)

        yield report


@contextlib.contextmanager
def _lines(console: Console, clock: Callable[[], float]) -> Iterator[ReportProgress]:
    """Print a line when a way of sampling is done, and one every few seconds until it is."""
    begun = clock()
    last = begun

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if done < total and now - last < EVERY:
            return
        last = now
        line = f"[{now - begun:4.0f} s] {label}: {done} of {total} calls"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    yield report
