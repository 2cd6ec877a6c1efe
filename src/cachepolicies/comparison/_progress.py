"""A progress bar for a comparison: one line for each way of sampling; plain lines where the output is piped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

ReportProgress = Callable[[str, int, int], None]
"""Tells the progress bar: what is running, how many evaluations it has done, and how many it will."""

_EVERY = 5.0
"""Seconds between two lines of one way of sampling, where there is no bar to redraw."""


@contextlib.contextmanager
def progress_bar(show: bool, console: Console | None) -> Iterator[ReportProgress]:
    if not show:
        yield lambda label, done, total: None
        return
    from rich.console import Console

    shown = console or Console(stderr=True)
    if not shown.is_terminal:
        yield _lines(shown)
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=shown) as bar:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(escape(label), total=total)
            bar.update(tasks[label], completed=done)

        yield report


def _lines(console: Console) -> ReportProgress:
    """Return what prints a line for each way of sampling when it begins, every few seconds, and at its end."""
    last: dict[str, float] = {}

    def report(label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label in last and done < total and now - last[label] < _EVERY:
            return
        last[label] = now
        console.print(f"{label}: {done}/{total}", markup=False, highlight=False)

    return report
