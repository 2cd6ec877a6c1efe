"""Where tables are printed."""

from __future__ import annotations

import os

from rich.console import Console


def wide_console(piped: int = 160) -> Console:
    """Return a console on stdout, wide enough for a table where nothing says how wide it is.

    Args:
        piped: columns when the output goes to a file or another program.
    """
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = piped
    return console
