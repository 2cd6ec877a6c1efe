"""A complete sampling loop for any denoiser and any scheduler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.base.host import visible
from cachepolicies.base.outputs import tensor_of
from cachepolicies.base.settings import shown
from cachepolicies.contracts.denoiser import RunAwareDenoiser
from cachepolicies.contracts.scheduler import SamplingRun
from cachepolicies.schedulers._noise import as_generators, check_one_per_sample
from cachepolicies.schedulers.conventions import Convention, as_convention, in_convention
from cachepolicies.schedulers.resolve import as_scheduler


@frozen
class Evaluation:
    """One evaluation of the denoiser, as a callback sees it.

    Attributes:
        index: 0 for the first of the run.
        t: where the denoiser was evaluated, in the scheduler's units.
        stage: 0 for the first evaluation of a step, 1 for the second (Heun).
        output: ``(B, ...)`` what the denoiser returned.
        x: ``(B, ...)`` the latent after it; after the last evaluation, the sample.
    """

    index: int
    t: float
    stage: int
    output: Tensor
    x: Tensor


def sample(
    denoiser: Callable[..., Any],
    scheduler: object,
    x: Tensor,
    *args: Any,
    num_steps: int,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    callback: Callable[[Evaluation], object] | None = None,
    convention: str | Convention | None = None,
    **kwargs: Any,
) -> Tensor:
    """Sample from noise to the end.

    The denoiser is called as ``denoiser(model_input, t, *args, **kwargs)`` with t a tensor ``(B,)``. A
    `RunAwareDenoiser` (``CachedDenoiser``) is told the timesteps, and the loop runs inside ``denoiser.run(...)``.
    Gradients are left as they are: put the call under ``torch.no_grad()`` unless you want to differentiate through it.

    Args:
        denoiser: returns a tensor, a tuple or list with a tensor first, or an object with a tensor ``.sample``.
        scheduler: whatever `as_scheduler` takes.
        x: ``(B, ...)`` standard normal noise, floating point; the scheduler scales it.
        args: passed on to the denoiser.
        num_steps: steps of the sampler; a Heun step takes two evaluations.
        generator: drawn from by stochastic samplers; with one for each sample, a sample does not depend on its batch.
        callback: called with an `Evaluation` after each one.
        convention: how the denoiser counts t and which way its velocity points, where not as diffusers does; a
            ``CachedDenoiser`` knows its own.
        kwargs: passed on to the denoiser.

    Returns:
        The samples ``(B, ...)``, with the dtype and device of x.

    Raises:
        InputError: x is not a floating-point tensor with at least one sample, the number of generators is not B, or
            the denoiser returned something that is not a tensor of x's shape.
        ProfileError: the denoiser was calibrated for another family of schedulers or prediction type.
        SettingsError: the scheduler or ``num_steps`` is wrong.
        UnknownNameError: no scheduler is registered under the name.
    """
    _check_noise(x)
    sampler = as_scheduler(scheduler)
    given: object = denoiser
    counted = as_convention(getattr(denoiser, "convention", None) if convention is None else convention)
    called = in_convention(denoiser, counted)
    aware = given if isinstance(given, RunAwareDenoiser) else None
    if aware is not None:
        aware.check_scheduler(sampler)
    generators = as_generators(generator)
    check_one_per_sample(generators, x.shape[0])
    timesteps = sampler.timesteps(num_steps)
    run = sampler.begin(num_steps, generator=generators, device=x.device)
    latent = sampler.initial(x, num_steps)
    declared: AbstractContextManager[Any] = contextlib.nullcontext()
    levels: dict[float, Tensor] = {}
    if aware is not None:
        if visible(x):
            own = timesteps if counted.is_own else [counted.own(level) for level in timesteps]
            declared = aware.run(timesteps=own)
        else:
            on_device = _levels_on_device(run, latent, timesteps)
            levels = dict(zip(timesteps, on_device, strict=True))
            declared = aware.run(timesteps=on_device if counted.is_own else counted.own(on_device))
    with declared:
        index = 0
        while not run.finished:
            t, stage = run.t, run.stage
            model_input, batched = run.model_input(latent)
            if t in levels:
                batched = levels[t].expand(x.shape[0])
            output = tensor_of(called(model_input, batched, *args, **kwargs))
            if output.shape != x.shape:
                raise InputError(
                    f"the denoiser returned shape {tuple(output.shape)} for an input of shape {tuple(x.shape)}; "
                    "its output must have the shape of the latent"
                )
            latent = run.advance(output, latent)
            if callback is not None:
                callback(Evaluation(index, t, stage, output, latent))
            index += 1
    return latent


def _levels_on_device(run: SamplingRun, latent: Tensor, timesteps: Sequence[float]) -> Tensor:
    """Return the timesteps ``(N,)`` as the denoiser will get them.

    A denoiser that is told of this tensor knows a t taken from it by its place, and never waits to read it.
    """
    _, batched = run.model_input(latent)
    return torch.tensor(timesteps, dtype=batched.dtype, device=batched.device)


def _check_noise(x: object) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"x is {shown(x)} ({type(x).__name__}); give a floating-point tensor of standard normal noise")
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}; give floating-point noise, for example torch.randn")
    if x.ndim == 0 or x.shape[0] == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; its first dimension is the batch and must be at least 1")
