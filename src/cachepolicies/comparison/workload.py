"""`Workload`: a denoiser with everything it takes to sample and judge it, and how the command line finds one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.converters import as_dict, as_tuple
from cachepolicies.base.errors import InputError, SettingsError, nearest_match_hint
from cachepolicies.base.settings import build, plain, positive_int, refuse, shown
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.resolve import as_scheduler


@frozen(eq=False)
class Inputs:
    """What B samples start from.

    Draw the row of each seed from a generator of its own, so that a sample does not depend on its batch.

    Attributes:
        noise: ``(B, ...)`` standard normal noise, floating point.
        args: further positional arguments of the denoiser, after x and t.
        kwargs: its keyword arguments. In both, tensors with one row a sample are cut to the rows that are evaluated.
        labels: what the scores compare with and the denoiser does not take.
        data: ``(B, ...)`` clean latents, for a calibration on noised data only.

    Raises:
        InputError: the noise is no floating-point tensor ``(B, ...)``.
    """

    noise: Tensor
    args: tuple[Any, ...] = field(default=(), converter=as_tuple)
    kwargs: Mapping[str, Any] = field(factory=dict, converter=as_dict)
    labels: Mapping[str, Tensor] = field(factory=dict, converter=as_dict)
    data: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.noise, Tensor) or not self.noise.is_floating_point() or self.noise.ndim < 2:
            given = (
                f"shape {tuple(self.noise.shape)}, {self.noise.dtype}"
                if isinstance(self.noise, Tensor)
                else shown(self.noise)
            )
            raise InputError(f"Inputs: noise must be a floating-point tensor (B, ...), got {given}")

    def __len__(self) -> int:
        """B, the number of samples."""
        return self.noise.shape[0]


SampleScore = Callable[[Tensor, Inputs], Tensor]
"""``score(samples, inputs)``: one number a sample, ``(B,)``; ``nan`` where it does not apply to a sample."""


_ROUNDING = 1e-3
"""Pictures may leave [0, 1] by this much."""


def _callable(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not callable(value):
        refuse(instance, attribute, value, "callable")


def _non_empty(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        refuse(instance, attribute, value, "a non-empty string")


def _positive_sizes(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not value or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in value):
        refuse(instance, attribute, value, "positive sizes, without the batch")


def _named_scores(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    for name, score in value.items():
        if not isinstance(name, str) or not callable(score):
            refuse(instance, attribute, value, "a mapping from names to callables score(samples, inputs)")


@frozen(eq=False)
class Workload:
    """A denoiser with everything it takes to sample and judge it.

    Attributes:
        name: of the report.
        denoiser: ``f(x, t, *args, **kwargs)``; guidance happens inside. One call on a row is one evaluation.
        scheduler: whatever `as_scheduler` takes.
        num_steps: of the uncached run.
        latent_shape: of one sample, without the batch.
        inputs: ``inputs(seeds)`` returns the `Inputs` of these samples, one row a seed, the same whenever it is asked.
        decode: from latents ``(B, ...)`` to grey pictures in [0, 1], ``(B, H, W)`` or ``(B, frames, H, W)``. Give the
            luminance of colour pictures.
        scores: name to a function of the latents and their inputs, one number a sample.
        guidance: guidance scale inside the denoiser, recorded only.

    Raises:
        SettingsError: an attribute is of the wrong kind.
        UnknownNameError: no scheduler is registered under the name.
    """

    name: str = field(validator=_non_empty)
    denoiser: Callable[..., Any] = field(validator=_callable)
    scheduler: Scheduler = field(converter=as_scheduler)
    num_steps: int = field(converter=plain, validator=positive_int)
    latent_shape: tuple[int, ...] = field(converter=as_tuple, validator=_positive_sizes)
    inputs: Callable[[Sequence[int]], Inputs] = field(validator=_callable)
    decode: Callable[[Tensor], Tensor] = field(validator=_callable)
    scores: Mapping[str, SampleScore] = field(factory=dict, converter=as_dict, validator=_named_scores)
    guidance: float | None = None

    def draw(self, seeds: Sequence[int]) -> Inputs:
        """Return ``inputs(seeds)``, checked.

        Raises:
            InputError: what was returned is no `Inputs`, or has not one row of ``latent_shape`` a seed.
        """
        drawn: object = self.inputs(seeds)
        if not isinstance(drawn, Inputs):
            raise InputError(f"workload {self.name!r}: inputs(seeds) returned {shown(drawn)}, not an Inputs")
        expected = (len(seeds), *self.latent_shape)
        if tuple(drawn.noise.shape) != expected:
            raise InputError(
                f"workload {self.name!r}: inputs of {len(seeds)} seeds have noise of shape "
                f"{tuple(drawn.noise.shape)}, expected {expected}; check latent_shape and inputs"
            )
        return drawn

    def pictures(self, samples: Tensor) -> Tensor:
        """Return ``decode(samples)`` as ``(B, frames, H, W)`` float32 on the CPU; a picture is a video of one frame.

        Raises:
            InputError: the pictures have another number of dimensions or of samples, or are not in [0, 1].
        """
        decoded: object = self.decode(samples)
        if not isinstance(decoded, Tensor) or decoded.ndim not in (3, 4) or decoded.shape[0] != samples.shape[0]:
            given = f"shape {tuple(decoded.shape)}" if isinstance(decoded, Tensor) else shown(decoded)
            raise InputError(
                f"workload {self.name!r}: decode returned {given} for {samples.shape[0]} samples; "
                "expected (B, H, W) or (B, frames, H, W)"
            )
        pictures = decoded.detach().to("cpu").float()
        low, high = pictures.min().item(), pictures.max().item()
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise InputError(
                f"workload {self.name!r}: decode returned pictures from {low:g} to {high:g}; PSNR and SSIM expect "
                "finite values in [0, 1]"
            )
        return pictures[:, None] if pictures.ndim == 3 else pictures

    def score(self, name: str, samples: Tensor, inputs: Inputs) -> Tensor:
        """Return one score of every sample, ``(B,)`` float64 on the CPU.

        Raises:
            InputError: the score is not one number a sample.
        """
        values: object = self.scores[name](samples, inputs)
        if not isinstance(values, Tensor) or values.shape != (samples.shape[0],):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else shown(values)
            raise InputError(
                f"workload {self.name!r}: score {name!r} returned {given} for {samples.shape[0]} samples; "
                "expected one number each, (B,)"
            )
        return values.detach().to("cpu").double()


def load_workload(target: str, **options: Any) -> Workload:
    """Import a function and call it for its `Workload`.

    Args:
        target: ``"package.module:function"``.
        **options: passed to the function by name.

    Returns:
        What it returned.

    Raises:
        SettingsError: the text has another form, the module cannot be imported, it has no such function, an option
            does not fit it, or it returned something else.
    """
    module_name, colon, function_name = target.partition(":") if isinstance(target, str) else ("", "", "")
    if not (colon and function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise SettingsError(
            f"workload {target!r}: expected 'module:function', for example "
            "'cachepolicies.reference.workloads:video_dit'"
        )
    module = _import(module_name, target)
    factory = getattr(module, function_name, None)
    if factory is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise SettingsError(
            f"workload {target!r}: module {module_name!r} has no {function_name!r}; "
            f"{nearest_match_hint(function_name, names)}"
        )
    if not callable(factory):
        raise SettingsError(f"workload {target!r}: {function_name!r} is {shown(factory)}, not a function")
    workload: object = build(factory, options, subject=f"workload {target!r}")
    if not isinstance(workload, Workload):
        raise SettingsError(
            f"workload {target!r}: the function returned {shown(workload)} ({type(workload).__name__}); it must return "
            "a cachepolicies.comparison.Workload"
        )
    return workload


def _import(module_name: str, target: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise SettingsError(
                f"workload {target!r}: there is no module {error.name!r}; install it, run in its folder, or put the "
                "folder on PYTHONPATH"
            ) from error
        raise SettingsError(f"workload {target!r}: importing {module_name!r} failed: {error}") from error
    except (ImportError, SyntaxError) as error:
        raise SettingsError(
            f"workload {target!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
