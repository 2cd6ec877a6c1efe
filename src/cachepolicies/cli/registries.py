"""``cachepolicies adapters``, ``policies``, ``schedules`` and so on: what is registered, and what failed."""

from __future__ import annotations

import json
import os
import warnings
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachepolicies._errors import CacheWarning
from cachepolicies._plugins import PluginFailure, Plugins, load_plugins
from cachepolicies._registry import Registry

_PIPED_WIDTH = 200
"""Columns when the output goes to a file or another program: each name stays on one line."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def adapters(as_json: AsJson = False) -> None:
    """List the adapters: model classes whose block stack is known."""
    loaded = _load()
    _print("adapters", loaded.adapters, loaded.failures, as_json)


def policies(as_json: AsJson = False) -> None:
    """List the policies: when an evaluation may be skipped."""
    loaded = _load()
    _print("policies", loaded.policies, loaded.failures, as_json)


def schedulers(as_json: AsJson = False) -> None:
    """List the schedulers: noise schedules and samplers."""
    loaded = _load()
    _print("schedulers", loaded.schedulers, loaded.failures, as_json)


def schedules(as_json: AsJson = False) -> None:
    """List the tolerance schedules: how far the output may have moved at each step."""
    loaded = _load()
    _print("schedules", loaded.tolerances, loaded.failures, as_json)


def substitutes(as_json: AsJson = False) -> None:
    """List the substitutes: what stands in for a skipped evaluation."""
    loaded = _load()
    _print("substitutes", loaded.substitutes, loaded.failures, as_json)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (adapters, policies, schedulers, schedules, substitutes):
        app.command()(command)


def _load() -> Plugins:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)  # the failures are listed below the table
        return load_plugins()


def _print(title: str, registry: Registry[Any], failures: tuple[PluginFailure, ...], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_dict(title, registry, failures), indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "distribution", "version"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary")
    for entry in registry.entries():
        # Text: a plugin's words are no markup.
        table.add_row(*(Text(cell) for cell in (entry.name, entry.distribution, entry.version, entry.summary)))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    console.print(table)
    for failure in failures:
        console.print(failure.message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _as_dict(title: str, registry: Registry[Any], failures: tuple[PluginFailure, ...]) -> dict[str, Any]:
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
