"""``cachepolicies calibrate --pipeline``: load a pipeline, read the prompts, and write the profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli._options import parsed_options

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile


def calibrated_pipeline(
    source: str,
    prompts: Path,
    steps: int,
    out: Path,
    checkpoint: Path | None,
    device: str,
    weights: int | None,
    options: list[str] | None,
    notes: str,
) -> dict[Path, Profile]:
    """Calibrate a pipeline and save its profile; of two denoisers one each, the name of each added to the file's.

    Raises:
        SettingsError: the prompts cannot be read, or the pipeline cannot be loaded.
    """
    given = _read(prompts)  # before the pipeline is loaded, which takes minutes
    call = parsed_options(options or [])
    from rich.console import Console

    from cachepolicies.calibration import calibrate_pipeline, clear_checkpoint
    from cachepolicies.profiles.io import save_profile

    kept = out.with_name(out.name + ".partial") if checkpoint is None else checkpoint
    found = calibrate_pipeline(
        _loaded(source, device),
        given,
        num_inference_steps=steps,
        name=out.stem,
        weights=weights,
        checkpoint=kept,
        console=Console(stderr=True),
        notes=notes,
        **call,
    )
    each = found if isinstance(found, dict) else {"": found}
    written = {}
    for name, profile in each.items():
        path = out.with_name(f"{out.stem}-{name}.json") if name else out
        written[save_profile(profile, path)] = profile
    for folder in kept.iterdir() if kept.is_dir() else ():
        clear_checkpoint(folder)
    if kept.is_dir() and not any(kept.iterdir()):
        kept.rmdir()
    return written


def _read(path: Path) -> list[str | dict[str, Any]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--prompts {path}: cannot be read ({error}); give a text file, a prompt a line") from error
    found: list[str | dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not line.startswith("{"):
            found.append(line)
            continue
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise SettingsError(f"--prompts {path}: line {number} is no JSON object ({error})") from error
    if not found:
        raise SettingsError(f"--prompts {path}: holds no prompt; write one a line")
    return found


def _loaded(source: str, device: str) -> Any:
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(source).to(device)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--pipeline {source}: cannot be loaded ({error}); give its folder or Hub id") from error
