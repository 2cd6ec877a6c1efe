"""``cachepolicies calibrate``: measure a workload's denoiser into a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli._options import AsJson, MaybeTarget, Options, check_place, seeds_from, workload_of
from cachepolicies.cli._pipeline import calibrated_pipeline
from cachepolicies.cli._trials import FURTHER, try_and_save
from cachepolicies.profiles.schema import Trajectory

FIRST_SEED = 1000
"""Away from the seeds that `compare` samples by default."""


def calibrate(
    workload: MaybeTarget = None,
    *,
    out: Annotated[Path, typer.Option(help="The .json file of the profile; its tables go beside it.")],
    samples: Annotated[int, typer.Option(help="Calibration samples; 8 suffice.")] = 8,
    steps: Annotated[int | None, typer.Option(help="Sampler steps; the workload's own by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = FIRST_SEED,
    batch_size: Annotated[int, typer.Option(help="Samples evaluated together, and kept together if interrupted.")] = 1,
    trajectory: Annotated[str, typer.Option(help="model: the model's own runs; noised: noised data.")] = "model",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Steps that get a measured weight, for planning: every, none, or N for every N-th and the last N. "
            "Default: six evenly spaced and the last but one, or none with --trajectory noised."
        ),
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Substitute whose plans are tried at the end, so that a quality can be asked for; none: no trials. "
            "Default: the corrected line.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile; the file's stem by default.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder for finished batches: an interrupted calibration resumes. Default: OUT.partial"),
    ] = None,
    notes: Annotated[str, typer.Option(help="Free text for the profile.")] = "",
    pipeline: Annotated[
        str | None, typer.Option(help="Instead of a workload: a diffusers pipeline, by its folder or Hub id.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="For --pipeline: a file with a prompt a line, or a JSON object with arguments of the call."),
    ] = None,
    device: Annotated[str, typer.Option(help="For --pipeline: where it runs.")] = "cpu",
    as_json: AsJson = False,
    option: Options = None,
) -> None:
    """Calibrate a denoiser once: how fast its output changes along the sampler's own steps."""
    from rich.console import Console

    from cachepolicies.calibration import CalibrationSamples, clear_checkpoint
    from cachepolicies.calibration import calibrate as measure
    from cachepolicies.profiles.io import profile_as_json, save_profile
    from cachepolicies.profiles.summary import summarise

    check_place(out, "profile")
    if pipeline is not None:
        if workload is not None or prompts is None or steps is None:
            raise SettingsError("--pipeline goes with --prompts and --steps, and without a workload")
        made = calibrated_pipeline(pipeline, prompts, steps, out, checkpoint, device, _stride(weights), option, notes)
        for path, each in made.items():
            if as_json:
                typer.echo(profile_as_json(each))
            else:
                Console().print(summarise(each))
                typer.echo(path)
        return
    if workload is None:
        raise SettingsError("give a workload, MODULE:FUNCTION, or --pipeline with --prompts and --steps")
    stride = _stride(weights)
    seeds = seeds_from(seed, samples, "--samples")
    given = workload_of(workload, option)
    drawn = given.draw(seeds)
    followed = _trajectory(trajectory)
    if followed == "noised" and drawn.data is None:
        raise SettingsError(f"--trajectory noised needs clean latents: inputs of {workload} give no Inputs(data=...)")
    kept = out.with_name(out.name + ".partial") if checkpoint is None else checkpoint
    profile = measure(
        given.denoiser,
        given.scheduler,
        CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, data=drawn.data, seeds=seeds),
        num_steps=given.num_steps if steps is None else steps,
        trajectory=followed,
        weights=stride,
        batch_size=batch_size,
        name=out.stem if name is None else name,
        guidance=given.guidance,
        checkpoint=kept,
        console=Console(stderr=True),
        notes=notes,
    )
    path = save_profile(profile, out)
    clear_checkpoint(kept)
    if trials != "none" and given.scheduler.evaluations_per_step == 1 and profile.num_steps > 1:
        profile = try_and_save(given, profile, out, FURTHER, substitute=trials)
    if as_json:
        typer.echo(profile_as_json(profile))
        return
    Console().print(summarise(profile))
    typer.echo(path)


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(calibrate)


def _trajectory(text: str) -> Trajectory:
    if text == "model":
        return "model"
    if text == "noised":
        return "noised"
    raise SettingsError(f"--trajectory {text!r} is unknown; choose model or noised")


def _stride(text: str | None) -> int | None:
    if text is None:
        return None
    words = {"none": 0, "every": 1}
    if text in words:
        return words[text]
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    raise SettingsError(f"--weights {text!r} is unknown; choose every, none, or every how many steps, as 5")
