"""Figures as SVG that is written into a page and takes its colours from it, so that they suit light and dark."""

from __future__ import annotations

import io
import re
from typing import Any

INK, MUTED, GRID, PAPER = "#1c2733", "#5b6875", "#e3e8ee", "#fffffe"
"""What a figure is drawn with where the page decides: each becomes a variable of the page."""

_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"}


def as_svg(figure: Any, name: str) -> str:
    """Return a matplotlib figure as an ``<svg>`` element.

    Args:
        figure: drawn with the colours above, or with such as suit a light and a dark page.
        name: unique in the page; the parts of the figure that are referred to are named after it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)  # the page knows them, and nothing in it looks like an address
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.strip()
