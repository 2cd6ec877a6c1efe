"""``cachepolicies profiles`` and ``cachepolicies profiles show``: what has been calibrated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from cachepolicies.base.errors import ProfileError, SettingsError
from cachepolicies.cli._complete import profile_names
from cachepolicies.cli._options import AsJson
from cachepolicies.learning.profile import LEARNED
from cachepolicies.learning.store import FILE, LearnedProfiles, default_folder

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

profiles = typer.Typer(help="List the shipped profiles, or show one.", invoke_without_command=True)


@profiles.callback()
def listed(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped profiles and those that were learned here, by class of model, or show one."""
    if context.invoked_subcommand is not None:
        return
    from cachepolicies.base.console import wide_console
    from cachepolicies.profiles.io import read_profile
    from cachepolicies.profiles.load import shipped_profiles

    found: list[tuple[str, Profile]] = []
    failures = []
    for name, path in shipped_profiles().items():
        try:
            found.append((name, read_profile(path)))
        except ProfileError as error:
            failures.append(f"{name}: {error}")
    kept = LearnedProfiles(default_folder())
    for place, profile in kept.all():
        if isinstance(profile, ProfileError):
            failures.append(f"{place.name}: {profile}")
        else:
            found.append((str(place / FILE), profile))
    if as_json:
        typer.echo(json.dumps({"profiles": [_as_dict(*each) for each in found], "failures": failures}, indent=2))
        return
    console = wide_console()
    if found:
        console.print(_by_class(found))
    elif not failures:
        console.print("no profiles are shipped; make one with `cachepolicies calibrate`", highlight=False)
    for failure in failures:
        console.print(failure, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _by_class(found: Sequence[tuple[str, Profile]]) -> Group:
    """Return the profiles as lines that fit 80 columns: under each class its policies, names, and what they are of."""
    lines: list[Text] = []
    for kind in sorted({profile.model.class_name for _, profile in found}):
        lines.append(Text(kind, style="bold"))
        for name, profile in found:
            if profile.model.class_name == kind:
                lines.append(Text(f"  {name}", no_wrap=True, overflow="ignore"))
                lines.append(Text(f"    {', '.join(_methods(profile)) or 'no policy'}"))
                lines.append(Text(f"    {_made_of(profile)}", style="dim"))
    return Group(*lines)


def _made_of(profile: Profile) -> str:
    """Return what a profile was made of, in a few words."""
    what = "learned" if profile.name.startswith(LEARNED) else profile.origin
    scheduler = "" if profile.scheduler is None else f", {profile.scheduler.name}"
    steps = f", {profile.num_steps} steps" if profile.num_steps else ""
    return f"{what}{scheduler}{steps}"


def _as_dict(name: str, profile: Profile) -> dict[str, Any]:
    return {
        "name": name,
        "class": profile.model.class_name,
        "policies": _methods(profile),
        "origin": "learned" if profile.name.startswith(LEARNED) else profile.origin,
        "scheduler": None if profile.scheduler is None else profile.scheduler.name,
        "steps": profile.num_steps or None,
        "samples": profile.samples if profile.origin == "measured" else None,
        "guidance": profile.guidance,
        "latent_shape": None if profile.latent_shape is None else list(profile.latent_shape),
    }


@profiles.command()
def show(
    name: Annotated[
        str,
        typer.Argument(help="A shipped name, a .json file or a Hub repository.", autocompletion=profile_names),
    ],
    plot: Annotated[Path | None, typer.Option(help="Also draw what it holds into this .png, .svg or .pdf.")] = None,
    what: Annotated[
        str | None,
        typer.Option(help="What to draw: sensitivities, ratios or polynomial; the first of these that it has."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a profile was made for, what was measured or published, and which settings it brings."""
    from cachepolicies.base.console import wide_console
    from cachepolicies.profiles import plot_magnitude_ratios, plot_polynomial, plot_sensitivities
    from cachepolicies.profiles.io import profile_as_json
    from cachepolicies.profiles.load import load_profile
    from cachepolicies.profiles.summary import summarise

    drawings = {"sencache": plot_sensitivities, "magcache": plot_magnitude_ratios, "teacache": plot_polynomial}
    words = {"sensitivities": "sencache", "ratios": "magcache", "polynomial": "teacache"}
    if what is not None and what not in words:
        raise SettingsError(f"--what {what!r} is unknown; choose sensitivities, ratios or polynomial")
    profile = load_profile(name)
    if as_json:
        typer.echo(profile_as_json(profile))
    else:
        wide_console().print(summarise(profile))
    if plot is not None:
        method = words[what] if what else next((m for m in _methods(profile) if m in drawings), "sencache")
        typer.echo(drawings[method](profile, plot), err=as_json)


def _methods(profile: Profile) -> list[str]:
    """The built-in policies that a profile has the numbers for."""
    numbers = {
        "best": {"change", "displacement"} <= profile.tables.keys(),
        "sencache": {"alpha_x", "alpha_t"} <= profile.curves.keys(),
        "magcache": bool(profile.magnitude_ratios),
        "easycache": "output_l1" in profile.tables,
        "seacache": "filtered_change" in profile.tables,
        "teacache": bool(profile.polynomials) or "coefficients" in profile.settings.get("teacache", {}),
    }
    return [name for name, there in numbers.items() if there]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.add_typer(profiles, name="profiles")
