"""Where the table is printed."""

from __future__ import annotations

import os

from rich.console import Console

PIPED_WIDTH = 160
"""Columns when the output goes to a file or another program."""


def wide_console() -> Console:
    """Return a console on stdout, wide enough for the table where nothing says how wide it is."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console
