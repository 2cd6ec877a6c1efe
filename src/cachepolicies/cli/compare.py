"""``cachepolicies compare``: sample a workload with policies, and with as many evaluations without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli._options import Options, Target, seeds_from, workload_of


def compare(
    workload: Target,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="A policy, such as sencache:epsilon=0.1,max_reuse=3; give several."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Profile of the policies: a shipped name, a .json file or a Hub repository.")
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
    substitute: Annotated[str, typer.Option(metavar="SPEC", help="What stands in for a skipped evaluation.")] = "hold",
    site: Annotated[
        str, typer.Option(help="Where an evaluation is cut: output, blocks, or the path of a submodule.")
    ] = "output",
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, table.csv and table.json.")] = None,
    option: Options = None,
) -> None:
    """Compare policies on a workload: evaluations, time, PSNR and SSIM against the uncached samples, and scores."""
    # here, not at the top: listing the policies must not wait for them
    from rich.console import Console

    from cachepolicies.base.console import wide_console
    from cachepolicies.comparison._extras import check_installed
    from cachepolicies.comparison.candidate import Candidate
    from cachepolicies.comparison.report import write_all
    from cachepolicies.comparison.runner import compare as run
    from cachepolicies.profiles.load import load_profile

    if not policy:
        raise SettingsError("compare: give at least one policy, for example --policy uniform:every=2")
    check_installed("torchmetrics", *(("pandas", "matplotlib", "jinja2") if out is not None else ()))
    chosen = seeds_from(first_seed, seeds, "--seeds")
    loaded = None if profile is None else load_profile(profile)
    given = workload_of(workload, option)
    if steps is not None:
        given = attrs.evolve(given, num_steps=steps)
    comparison = run(
        given,
        [Candidate(spec, spec, profile=loaded, substitute=substitute, site=site) for spec in policy],
        chosen,
        batch_size=batch_size,
        repeats=repeats,
        baselines=baselines,
        audited=audited,
        stability=stability,
        console=Console(stderr=True),
    )
    wide_console().print(comparison.table())
    if out is not None:
        for path in write_all(comparison, out):
            typer.echo(path)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(compare)
