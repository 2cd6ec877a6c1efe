"""``cachepolicies adapters``, ``policies``, ``schedules`` and so on: what is registered, and what failed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich import box
from rich.text import Text

from cachepolicies.base.console import PlainTable, wide_console
from cachepolicies.base.errors import CacheWarning
from cachepolicies.cli._options import AsJson
from cachepolicies.registry.load import PluginFailure, Plugins, load_plugins
from cachepolicies.registry.registry import Registry

_PIPED_WIDTH = 200
"""Columns when the output goes to a file or another program: each name stays on one line."""

LISTS = {
    "adapters": "List the adapters: model classes whose block stack is known.",
    "policies": "List the policies: when an evaluation may be skipped.",
    "schedulers": "List the schedulers: noise schedules and samplers.",
    "schedules": "List the tolerance schedules: how far the output may have moved at each step.",
    "scores": "List the scores: the predicted error of a reuse, compared with the tolerance.",
    "signals": "List the signals that any site can supply; an adapter has more.",
    "sites": "List the sites: where an evaluation is cut.",
    "substitutes": "List the substitutes: what stands in for a skipped evaluation.",
}
"""Command to its help text."""

_ATTRIBUTES = {"schedules": "tolerances"}
"""Where the loaded plugins call a registry by another name than its command."""


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for title, summary in LISTS.items():
        app.command(title, help=summary)(_lister(title))


def _lister(title: str) -> Callable[[bool], None]:
    def listed(as_json: AsJson = False) -> None:
        loaded = _load_quietly()
        registry: Registry[Any] = getattr(loaded, _ATTRIBUTES.get(title, title))
        _print_entries(title, registry, loaded.failures, as_json)

    return listed


def _load_quietly() -> Plugins:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)  # the failures are listed below the table
        return load_plugins()


def _print_entries(title: str, registry: Registry[Any], failures: tuple[PluginFailure, ...], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_entries_as_dict(title, registry, failures), indent=2))
        return
    table = PlainTable(box=box.SIMPLE_HEAD)
    for column in ("name", "distribution", "version"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for entry in registry.entries():
        # Text: a plugin's words are no markup.
        table.add_row(*(Text(cell) for cell in (entry.name, entry.distribution, entry.version, entry.summary)))
    console = wide_console(_PIPED_WIDTH)
    console.print(table)
    for failure in failures:
        console.print(failure.message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _entries_as_dict(title: str, registry: Registry[Any], failures: tuple[PluginFailure, ...]) -> dict[str, Any]:
    return {
        title: [
            {
                "name": entry.name,
                "distribution": entry.distribution,
                "version": entry.version,
                "summary": entry.summary,
            }
            for entry in registry.entries()
        ],
        "failures": [
            {
                "distribution": failure.source.distribution,
                "version": failure.source.version,
                "entry_point": failure.source.entry_point,
                "cause": f"{type(failure.cause).__name__}: {failure.cause}",
            }
            for failure in failures
        ],
    }
