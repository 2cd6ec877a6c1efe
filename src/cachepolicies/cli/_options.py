"""What the commands that take a workload have in common."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.files import check_writable
from cachepolicies.comparison.workload import Workload, load_workload

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="Function that returns a cachepolicies.comparison.Workload, for example "
        "cachepolicies.reference.workloads:video_dit.",
    ),
]
MaybeTarget = Annotated[
    str | None,
    typer.Argument(metavar="[MODULE:FUNCTION]", help="Function that returns a cachepolicies.comparison.Workload."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
"""Every command that prints something has it."""

Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="Argument of the function; may be given several times."),
]


def workload_of(target: str, options: list[str] | None) -> Workload:
    """Load the workload that a command names; modules in the current folder can be imported.

    Raises:
        SettingsError: see `load_workload`; also an option that is not ``name=value``.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script's own folder is on the path instead
    return load_workload(target, **parsed_options(options or []))


def parsed_options(options: list[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name.isidentifier():
            raise SettingsError(f"--option {option!r}: expected name=value, for example --option guidance=3")
        if name in parsed:
            raise SettingsError(f"--option {name!r} is given twice")
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text  # a bare word
    return parsed


def seeds_from(first: int, count: int, what: str) -> range:
    """Return ``count`` seeds from ``first`` on.

    Raises:
        SettingsError: the count is not positive, or the first is negative.
    """
    if count < 1:
        raise SettingsError(f"{what} must be at least 1, got {count}")
    if first < 0:
        raise SettingsError(f"the first seed must be at least 0, got {first}")
    return range(first, first + count)


def check_place(out: Path, noun: str | None = None) -> None:
    """Check that a file can be written at the place of ``--out``, before anything is computed for it.

    Args:
        out: the file, or the folder where there is no noun.
        noun: what the file is, a .json one.

    Raises:
        SettingsError: it has another suffix, or can be written by nobody, or not by this user.
    """
    if noun is not None and out.suffix != ".json":
        raise SettingsError(f"--out {out}: a {noun} is a .json file; save it as {out.name + '.json'!r}")
    try:
        check_writable(out if noun is not None else out / "report.html")
    except OSError as error:
        raise SettingsError(f"--out {out} cannot be written ({error}); choose another place") from error
