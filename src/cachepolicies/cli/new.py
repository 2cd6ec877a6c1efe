"""``cachepolicies new``: write a package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("new")(new)


def new(
    name: Annotated[str, typer.Argument(help="What users will write, every-third say; of an adapter the model class.")],
    kind: Annotated[
        Literal["policy", "substitute", "site", "adapter", "scheduler", "tolerance"],
        typer.Option(help="What to write."),
    ] = "policy",
    into: Annotated[Path, typer.Option(help="Folder that the package's own folder is made in.")] = Path(),
) -> None:
    """Write a complete package: one documented class, its entry point, tests and a README."""
    from cachepolicies.kit import write_package

    folder = write_package(name, kind, into)
    typer.echo(f"wrote {folder}")
    typer.echo(f'next: pip install -e "{folder}[test]" && pytest {folder}')
