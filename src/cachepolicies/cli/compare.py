"""``cachepolicies compare``: sample a workload with policies, and with as many evaluations without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli._candidates import candidate_of, fields_of
from cachepolicies.cli._complete import policy_names, profile_names, site_names, substitute_names
from cachepolicies.cli._options import AsJson, Options, Target, check_place, seeds_from, workload_of
from cachepolicies.profiles.load import load_profile

FAILED = 1
"""Exit code where a candidate failed and the others are there."""


def compare(
    workload: Target,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="A policy, such as sencache:epsilon=0.1,max_reuse=3, or best for the best there is; give several.",
            autocompletion=policy_names,
        ),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'KEY=VALUE ...'",
            help="A candidate with settings of its own: policy, budget, target, substitute, site, profile, steps, "
            "label; for example 'policy=teacache budget=0.4 site=blocks'. May be given several times.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Of every candidate: evaluations (22), a part of the work (0.4), or 2.5x.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Instead: what new samples shall have, 45dB or 0.01rms.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Profile of the policies: a shipped name, a .json file or a Hub repository.",
            autocompletion=profile_names,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of samples.")] = 32,
    first_seed: Annotated[int, typer.Option(help="Seed of the first; keep off those of the calibration.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampler steps; the workload's own by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples evaluated together.")] = 32,
    repeats: Annotated[int, typer.Option(help="How often each is timed; the table has medians.")] = 1,
    baselines: Annotated[
        bool, typer.Option(help="Also as many evaluations by fewer steps and by evenly spaced reuse.")
    ] = True,
    audited: Annotated[int, typer.Option(help="Samples on which predicted and true changes are compared.")] = 8,
    stability: Annotated[
        bool, typer.Option(help="Count samples that a tiny random change moves as far; one more uncached pass.")
    ] = True,
    substitute: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="What stands in for a skipped evaluation; what goes best with the policy by default.",
            autocompletion=substitute_names,
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Where an evaluation is cut: output (by default), blocks, or the path of a submodule.",
            autocompletion=site_names,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, table.csv and table.json.")] = None,
    as_json: AsJson = False,
    option: Options = None,
) -> None:
    """Compare policies on a workload: evaluations, time, PSNR and SSIM against the uncached samples, and scores."""
    given_fields = fields_of(
        policy or [],
        candidate or [],
        {"budget": budget, "target": target, "profile": profile, "substitute": substitute, "site": site},
    )
    if not given_fields:
        raise SettingsError("compare: give at least one policy, for example --policy uniform:every=2, or a candidate")
    if out is not None:
        check_place(out)
    profiles = {name: load_profile(name) for name in {each["profile"] for each in given_fields if "profile" in each}}
    # here, not at the top: listing the policies must not wait for them
    from rich.console import Console

    from cachepolicies.base.console import wide_console
    from cachepolicies.comparison._extras import check_installed
    from cachepolicies.comparison.report import write_all
    from cachepolicies.comparison.runner import compare as run

    check_installed("torchmetrics", *(("pandas", "matplotlib", "jinja2") if out is not None else ()))
    chosen = seeds_from(first_seed, seeds, "--seeds")
    given = workload_of(workload, option)
    if steps is not None:
        given = attrs.evolve(given, num_steps=steps)
    comparison = run(
        given,
        [candidate_of(each, profiles) for each in given_fields],
        chosen,
        batch_size=batch_size,
        repeats=repeats,
        baselines=baselines,
        audited=audited,
        stability=stability,
        console=Console(stderr=True),
    )
    if as_json:
        typer.echo(comparison.to_json(), nl=False)
    else:
        console = wide_console()
        console.print(comparison.verdict(), highlight=False, markup=False, soft_wrap=True)
        console.print(comparison.table())
    if out is not None:
        for path in write_all(comparison, out):
            typer.echo(path, err=as_json)
    if comparison.failures:
        for label, error in comparison.failures.items():
            typer.echo(f"{label} failed: {error}", err=True)
        raise typer.Exit(FAILED)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(compare)
