"""``cachepolicies profiles`` and ``cachepolicies profiles show``: what has been calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cachepolicies._errors import ProfileError

profiles = typer.Typer(help="List the shipped profiles, or show one.", invoke_without_command=True)


@profiles.callback()
def listed(context: typer.Context) -> None:
    """List the shipped profiles, or show one."""
    if context.invoked_subcommand is not None:
        return
    from cachepolicies.comparison._console import wide_console
    from cachepolicies.profiles.io import read_profile
    from cachepolicies.profiles.load import shipped_profiles

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "model", "scheduler", "steps", "samples", "guidance", "latent shape"):
        table.add_column(column)
    failures = []
    for name, path in shipped_profiles().items():
        try:
            profile = read_profile(path)
        except ProfileError as error:
            failures.append(f"{name}: {error}")
            continue
        row = (
            name,
            profile.model.class_name,
            profile.scheduler.name,
            str(profile.num_steps),
            str(profile.samples),
            "none" if profile.guidance is None else f"{profile.guidance:g}",
            " x ".join(map(str, profile.latent_shape)),
        )
        table.add_row(*map(Text, row))
    console = wide_console()
    if table.row_count:
        console.print(table)
    elif not failures:
        console.print("no profiles are shipped; make one with `cachepolicies calibrate`", highlight=False)
    for failure in failures:
        console.print(failure, style="yellow", markup=False, highlight=False, soft_wrap=True)


@profiles.command()
def show(
    name: Annotated[str, typer.Argument(help="A shipped name, a .json file or a Hub repository.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw the sensitivities into this .png, .svg or .pdf.")] = None,
) -> None:
    """Show what a profile was calibrated for and what was measured."""
    from cachepolicies.comparison._console import wide_console
    from cachepolicies.profiles.load import load_profile
    from cachepolicies.profiles.plot import plot_sensitivities
    from cachepolicies.profiles.summary import summarise

    profile = load_profile(name)
    wide_console().print(summarise(profile))
    if plot is not None:
        typer.echo(plot_sensitivities(profile, plot))


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(profiles, name="profiles")
