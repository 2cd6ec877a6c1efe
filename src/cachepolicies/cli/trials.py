"""``cachepolicies trials``: what plans of a profile are off by, on samples that they were not made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cachepolicies.base.errors import ProfileError
from cachepolicies.cli._options import AsJson, Options, Target, workload_of
from cachepolicies.cli._trials import FURTHER, try_and_save


def trials(
    workload: Target,
    profile: Annotated[Path, typer.Option(help="The .json file of the workload's profile; written again.")],
    substitute: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="What stands in for a skipped evaluation. Default: the corrected line."),
    ] = None,
    objective: Annotated[str, typer.Option(help="Of the plans, as for plan.")] = "signed",
    weights: Annotated[
        str | None, typer.Option(help="Of the plans, as for plan. Default: geometric, or uniform without weights.")
    ] = None,
    budget: Annotated[
        list[int] | None, typer.Option(help="Evaluations of a run to try; may be given several times.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples beside the calibration's own.")] = FURTHER,
    as_json: AsJson = False,
    option: Options = None,
) -> None:
    """Try plans of a profile: what to expect of them on new samples, which targets in dB need."""
    from cachepolicies.base.console import wide_console
    from cachepolicies.profiles.io import profile_as_json, read_profile
    from cachepolicies.profiles.summary import summarise_trials

    if samples < 0:
        raise ProfileError(f"--samples {samples}: give a number of samples >= 0")
    plans: dict[str, Any] = {"objective": objective, "budgets": tuple(budget) if budget else None}
    if weights is not None:
        plans["weights"] = weights
    tried = try_and_save(
        workload_of(workload, option), read_profile(profile), profile, samples, substitute=substitute, **plans
    )
    if as_json:
        typer.echo(profile_as_json(tried))
        return
    wide_console().print(summarise_trials(tried.trials[-1]))
    typer.echo(profile)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(trials)
