"""``cachepolicies profiles`` and ``cachepolicies profiles show``: what has been calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from cachepolicies.base.errors import ProfileError, SettingsError

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

_UNKNOWN = "-"
"""What a published profile's source does not say."""

profiles = typer.Typer(help="List the shipped profiles, or show one.", invoke_without_command=True)


@profiles.callback()
def listed(context: typer.Context) -> None:
    """List the shipped profiles, or show one."""
    if context.invoked_subcommand is not None:
        return
    from cachepolicies.base.console import wide_console
    from cachepolicies.profiles.io import read_profile
    from cachepolicies.profiles.load import shipped_profiles

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)  # what is typed must not be cut
    for column in ("model", "origin", "for", "scheduler", "steps", "samples", "guidance", "latent shape"):
        table.add_column(column)
    failures = []
    for name, path in shipped_profiles().items():
        try:
            profile = read_profile(path)
        except ProfileError as error:
            failures.append(f"{name}: {error}")
            continue
        published, shape, guidance = profile.origin == "published", profile.latent_shape, profile.guidance
        without = _UNKNOWN if published else "none"
        row = (
            name,
            profile.model.class_name,
            profile.origin,
            ", ".join(_methods(profile)),
            _UNKNOWN if profile.scheduler is None else profile.scheduler.name,
            str(profile.num_steps or _UNKNOWN),
            _UNKNOWN if published else str(profile.samples),
            without if guidance is None else f"{guidance:g}",
            _UNKNOWN if shape is None else " x ".join(map(str, shape)),
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
    plot: Annotated[Path | None, typer.Option(help="Also draw what it holds into this .png, .svg or .pdf.")] = None,
    what: Annotated[
        str | None,
        typer.Option(help="What to draw: sensitivities, ratios or polynomial; the first of these that it has."),
    ] = None,
) -> None:
    """Show what a profile was made for, what was measured or published, and which settings it brings."""
    from cachepolicies.base.console import wide_console
    from cachepolicies.profiles import plot_magnitude_ratios, plot_polynomial, plot_sensitivities
    from cachepolicies.profiles.load import load_profile
    from cachepolicies.profiles.summary import summarise

    drawings = {"sencache": plot_sensitivities, "magcache": plot_magnitude_ratios, "teacache": plot_polynomial}
    words = {"sensitivities": "sencache", "ratios": "magcache", "polynomial": "teacache"}
    if what is not None and what not in words:
        raise SettingsError(f"--what {what!r} is unknown; choose sensitivities, ratios or polynomial")
    profile = load_profile(name)
    wide_console().print(summarise(profile))
    if plot is not None:
        method = words[what] if what else next((m for m in _methods(profile) if m in drawings), "sencache")
        typer.echo(drawings[method](profile, plot))


def _methods(profile: Profile) -> list[str]:
    """The built-in policies that a profile has the numbers for."""
    numbers = {
        "sencache": {"alpha_x", "alpha_t"} <= profile.curves.keys(),
        "magcache": bool(profile.magnitude_ratios),
        "teacache": bool(profile.polynomials) or "coefficients" in profile.settings.get("teacache", {}),
    }
    return [name for name, there in numbers.items() if there]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(profiles, name="profiles")
