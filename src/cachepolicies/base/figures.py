"""Figures drawn with matplotlib, which is imported when one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cachepolicies.base.errors import NeedsError, SettingsError


def new_figure(what: str, width: float, height: float) -> Any:
    """Return an empty matplotlib figure.

    Args:
        what: is drawn, for the message: ``"a plan"``.
        width: inches.
        height: inches.

    Raises:
        NeedsError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NeedsError(
            f"drawing {what} needs matplotlib, which is not installed; install the extra `plots`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure, whose suffix chooses the format, and return its path; its folder is created.

    Raises:
        SettingsError: matplotlib cannot write this format.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(target, dpi=150)
    except ValueError as error:
        raise SettingsError(f"cannot draw to {target}: {error}; use the suffix .png, .svg or .pdf") from error
    return target
