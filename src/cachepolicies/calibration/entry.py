"""`calibrate`: one name for a denoiser in a loop of the library's own, and for a pipeline in its own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from cachepolicies.base.errors import SettingsError
from cachepolicies.calibration.driver import calibrate_denoiser
from cachepolicies.calibration.pipeline import calibrate_pipeline, is_pipeline
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.profiles.schema import Profile


@overload
def calibrate(model: Callable[..., Any], scheduler: object, samples: CalibrationSamples, **options: Any) -> Profile: ...


@overload
def calibrate(
    model: Any, *, prompts: Sequence[str | Mapping[str, Any]], num_inference_steps: int, **options: Any
) -> Any: ...


def calibrate(
    model: Any,
    scheduler: object = None,
    samples: CalibrationSamples | None = None,
    *,
    prompts: Sequence[str | Mapping[str, Any]] | None = None,
    **options: Any,
) -> Any:
    """Calibrate a denoiser, or a diffusers pipeline where it runs.

    ```python
    profile = calibrate(model, scheduler, CalibrationSamples.from_seeds(range(8), shape, args=(prompts,)))
    profile = calibrate(pipe, prompts=["a cat", "a street"], num_inference_steps=50, guidance_scale=5.0)
    ```

    Args:
        model: a denoiser ``f(x, t, ...)``, or a pipeline.
        scheduler: of a denoiser; see `cachepolicies.calibration.calibrate_denoiser`.
        samples: of a denoiser.
        prompts: of a pipeline; see `cachepolicies.calibration.calibrate_pipeline`.
        **options: further arguments of the one or the other; for a pipeline also those of its own call.

    Returns:
        The profile, not yet saved; of a pipeline with two denoisers one for each, by its name in the pipeline.

    Raises:
        SettingsError: a denoiser without scheduler or samples, a pipeline without prompts, or one beside the other.
        InputError, ProfileError, RunError, UnknownNameError: see the two.
    """
    if is_pipeline(model):
        if scheduler is not None or samples is not None or prompts is None:
            raise SettingsError(
                f"a {type(model).__name__} is calibrated by its own runs: calibrate(pipe, prompts=[...], "
                "num_inference_steps=..., and the arguments of its call)"
            )
        if "num_inference_steps" not in options:
            raise SettingsError("num_inference_steps is missing; a profile is of runs with one number of steps")
        return calibrate_pipeline(model, prompts, **options)
    if prompts is not None:
        raise SettingsError(
            f"prompts are given, and a {type(model).__name__} is no pipeline; give a scheduler and CalibrationSamples"
        )
    if scheduler is None or samples is None:
        raise SettingsError(
            "a denoiser is calibrated with the scheduler that it is sampled with, on samples: "
            "calibrate(model, scheduler, CalibrationSamples.from_seeds(range(8), latent_shape))"
        )
    return calibrate_denoiser(model, scheduler, samples, **options)
