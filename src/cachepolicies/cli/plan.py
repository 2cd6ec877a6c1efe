"""``cachepolicies plan``: from a profile to the steps to refresh, for a budget or a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachepolicies.base.budget import as_budget
from cachepolicies.base.errors import SettingsError
from cachepolicies.cli._options import AsJson, check_place

if TYPE_CHECKING:
    from cachepolicies.planning.plan_record import Plan


def plan(
    profile: Annotated[str, typer.Argument(help="A shipped name, a .json file or a Hub repository.")],
    budget: Annotated[
        str | None, typer.Option(help="What a run may cost: evaluations (22), a part (0.4), or 2.5x; this or --target.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="QUALITY",
            help="Instead: the fewest evaluations that give new samples 45dB or 0.01rms in the mean, nine in ten at "
            "most 3 dB less; or a plain number, the objective's own prediction at most.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help="Of the weighted errors: signed (as vectors), sum, max, or lexicographic (max, then sum)."),
    ] = "signed",
    errors: Annotated[
        str, typer.Option(help="Errors of a reuse: measured on the calibration runs, or predicted by the score.")
    ] = "measured",
    substitute: Annotated[str, typer.Option(metavar="SPEC", help="What stands in for a skipped evaluation.")] = "hold",
    max_reuse: Annotated[int | None, typer.Option(help="Most reuses in a row.")] = None,
    always: Annotated[
        list[int] | None,
        typer.Option(help="A step that is always refreshed, negative from the end; may be given several times."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="What an error does to the sample: geometric, measured, bound or uniform.")
    ] = "geometric",
    num_steps: Annotated[
        int | None, typer.Option(help="Sampler steps, the calibrated ones by default; others with --errors predicted.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Of the run, where it is not the profile's own.")
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            help="Then move refreshes one at a time, by the true error of sampled runs, with at most so many "
            "evaluations of the denoiser; needs --workload."
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="The workload that the profile was calibrated with, for --refine."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Samples that --refine looks at, from the calibration's first seed on.")
    ] = 8,
    shape: Annotated[str, typer.Option(help="Of the tolerance over t: piecewise or monotone.")] = "piecewise",
    out: Annotated[Path | None, typer.Option(help="Write the plan into this .json file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw tolerance, weights and trade-off into this .png, .svg or .pdf.")
    ] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Show the best plan for every budget.")] = False,
    as_json: AsJson = False,
) -> None:
    """Plan a run: which steps to evaluate so that a budget of evaluations costs the least quality."""
    from cachepolicies.base.console import wide_console
    from cachepolicies.planning.io import plan_as_json, save_plan
    from cachepolicies.planning.planner import plan as make
    from cachepolicies.planning.plot import plot_plan
    from cachepolicies.planning.summary import summarise_plan

    if out is not None:
        check_place(out, "plan")
    if (refine is None) != (workload is None):
        raise SettingsError("--refine and --workload belong together; give both or none")
    words: dict[str, Any] = {"errors": errors, "weights": weights, "shape": shape}  # checked where they are used
    settings: dict[str, Any] = {
        "objective": objective,
        "substitute": substitute,
        "scheduler": scheduler,
        "max_reuse": max_reuse,
        "num_steps": num_steps,
        **words,
    }
    made = make(
        profile,
        int(budget) if budget is not None and budget.isdecimal() else as_budget(budget),
        target=_target(target),
        always=tuple(always or ()),
        **settings,
    )
    if refine is not None and workload is not None:
        made = _refined(made, profile, workload, refine, samples, settings)
    if as_json:
        typer.echo(plan_as_json(made))
    else:
        wide_console().print(summarise_plan(made, curve=curve))
    if out is not None:
        typer.echo(save_plan(made, out), err=as_json)
    if plot is not None:
        typer.echo(plot_plan(made, plot), err=as_json)


def _refined(made: Plan, profile: str, workload: str, evaluations: int, samples: int, settings: dict[str, Any]) -> Plan:
    """Return the plan of the steps that moving refreshes found."""
    import attrs
    from rich.console import Console

    from cachepolicies.calibration import CalibrationSamples
    from cachepolicies.calibration import refine as move
    from cachepolicies.cli._options import seeds_from, workload_of
    from cachepolicies.planning.planner import plan as make
    from cachepolicies.profiles.load import load_profile

    loaded, given = load_profile(profile), workload_of(workload, None)
    seeds = seeds_from(loaded.seeds[0] if loaded.seeds else 0, samples, "--samples")
    drawn = given.draw(seeds)
    found = move(
        made,
        loaded,
        given.denoiser,
        given.scheduler,
        CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=seeds),
        evaluations,
        console=Console(stderr=True),
    )
    again = make(loaded, len(found.refreshes), always=found.refreshes, **settings)
    note = (
        f"refined on {samples} samples with {found.evaluations} evaluations and {found.tried} moves: the latent is "
        f"{found.before:.1f} dB from the uncached one before, {found.after:.1f} dB after, on these samples"
    )
    return attrs.evolve(again, notes="; ".join(text for text in (again.notes, note) if text))


def _target(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(plan)
