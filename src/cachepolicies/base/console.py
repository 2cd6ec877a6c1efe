"""Where tables are printed."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachepolicies.base.errors import printable


def wide_console(piped: int = 160) -> Console:
    """Return a console on stdout, wide enough for a table where nothing says how wide it is.

    Args:
        piped: columns when the output goes to a file or another program.
    """
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = piped
    return console


class PlainTable(Table):
    """A table that shows texts as they are: nothing in them is taken for markup, or obeyed by the terminal."""

    def __init__(self, *headers: str, title: str | None = None, **settings: Any) -> None:
        """Make a table; the arguments are those of ``rich.table.Table``."""
        super().__init__(*headers, title=None if title is None else _as_it_is(title), **settings)

    def add_column(self, header: Any = "", *arguments: Any, **settings: Any) -> None:
        """Add a column as ``rich.table.Table.add_column`` does."""
        super().add_column(_as_it_is(header), *arguments, **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """Add a row as ``rich.table.Table.add_row`` does."""
        super().add_row(*map(_as_it_is, cells), **settings)


def _as_it_is(cell: Any) -> Any:
    if isinstance(cell, str):
        return Text(printable(cell))
    if isinstance(cell, Text) and not cell.plain.isprintable():
        return Text(printable(cell.plain), style=cell.style, justify=cell.justify, overflow=cell.overflow)
    return cell
