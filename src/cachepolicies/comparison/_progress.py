"""A progress bar for a comparison: one line for each way of sampling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

ReportProgress = Callable[[str, int, int], None]
"""Tells the progress bar: what is running, how many evaluations it has done, and how many it will."""


@contextlib.contextmanager
def progress_bar(show: bool, console: Console | None) -> Iterator[ReportProgress]:
    if not show:
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(escape(label), total=total)
            bar.update(tasks[label], completed=done)

        yield report
