"""Every scheduler on the trained models: uncached as a plain loop does, cached with a faithful trace."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from cachepolicies import CachedDenoiser, CalibrationSamples, Profile, calibrate, sample
from cachepolicies.base.outputs import tensor_of
from cachepolicies.schedulers import DDIM, DDPM, FlowEuler, KarrasEuler, KarrasHeun
from cachepolicies.schedulers.from_diffusers import SUPPORTED, from_class_name
from denoisers import Counted
from plain_loops import plain_loop
from subjects import subject

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning", "ignore::DeprecationWarning")

STEPS = 8
ROWS = 2
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
CASES = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", FLOW),
    ("DPMSolverMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", LINEAR),
    ("DPMSolverMultistepScheduler", LINEAR),
    ("DDIMScheduler", LINEAR | {"clip_sample": False}),
    ("DDPMScheduler", LINEAR | {"clip_sample": False}),
    ("EulerDiscreteScheduler", LINEAR),
    ("EulerAncestralDiscreteScheduler", LINEAR),
    ("HeunDiscreteScheduler", LINEAR),
    ("CogVideoXDDIMScheduler", LINEAR | {"prediction_type": "epsilon", "clip_sample": False}),
    ("CogVideoXDPMScheduler", LINEAR | {"prediction_type": "epsilon", "clip_sample": False}),
]
HEUN = ("FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "karras-heun")


def test_every_supported_class_has_a_case():
    assert {name for name, _ in CASES} == set(SUPPORTED)


def karras_denoiser(x: Tensor, sigma: Tensor, **conditioning: Tensor) -> Tensor:
    """The image DiT in the k-diffusion convention: ``model(x, sigma)`` returns the data."""
    betas = np.linspace(1e-4, 0.02, 1000)
    product = np.cumprod(1 - betas)
    levels = np.sqrt((1 - product) / product)
    t = torch.as_tensor(np.interp(np.log(sigma.numpy()), np.log(levels), np.arange(1000.0)), dtype=torch.float32)
    s = sigma.reshape(-1, 1, 1, 1)
    noise = subject("image-dit").model(x / (1 + s**2).sqrt(), t, **conditioning).sample
    return x - s * noise


def setting(case):
    """Return the model, its profile (if it has one), a scheduler and inputs."""
    if isinstance(case, tuple):
        name, config = case
        flow = name.startswith("FlowMatch") or config is FLOW
        scheduler = from_class_name(name, **config)
        s = subject("video-dit" if flow else "image-dit")
    else:
        scheduler = case
        s = subject("video-dit" if scheduler.family == "flow" else "image-dit")
    x, conditioning = s.inputs(ROWS, seed=5)
    edm = scheduler.family == "edm"
    return (karras_denoiser if edm else s.model), (None if edm else s.profile), scheduler, x, conditioning


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + row) for row in range(ROWS)]


def plain_diffusers(name: str, config: dict, model, noise: Tensor, conditioning: dict) -> Tensor:
    scheduler = getattr(diffusers, name)(**config)
    return plain_loop(scheduler, model, noise, STEPS, generators(), **conditioning)


def plain_native(scheduler, model, noise: Tensor, conditioning: dict) -> Tensor:
    """The native samplers, written out."""

    def f(x, t):
        return tensor_of(model(x, torch.full((ROWS,), t, dtype=torch.float32), **conditioning))

    if isinstance(scheduler, DDIM):
        return plain_diffusers("DDIMScheduler", LINEAR | {"clip_sample": False}, model, noise, conditioning)
    if isinstance(scheduler, DDPM):
        return plain_diffusers("DDPMScheduler", LINEAR | {"clip_sample": False}, model, noise, conditioning)
    levels = [*scheduler.timesteps(STEPS), 0.0]
    if isinstance(scheduler, FlowEuler):
        x = noise
        for t, end in pairwise(levels):
            x = x + (end - t) / 1000 * f(x, t)
        return x
    x = noise * levels[0]
    for sigma, end in pairwise(levels):
        slope = (x - f(x, sigma)) / sigma
        euler = x + (end - sigma) * slope
        if isinstance(scheduler, KarrasHeun) and end:
            x = x + (end - sigma) * 0.5 * (slope + (euler - f(euler, end)) / end)
        else:
            x = euler
    return x


EVERYTHING = [FlowEuler(), DDIM(), DDPM(), KarrasEuler(), KarrasHeun(), *CASES]


def name_of(case) -> str:
    return f"{case[0]}-{'flow' if case[1] is FLOW else 'own'}" if isinstance(case, tuple) else case.name


def expected_calls(case) -> int:
    name = case[0] if isinstance(case, tuple) else case.name
    return 2 * STEPS - 1 if name in HEUN else STEPS


@pytest.mark.parametrize("case", EVERYTHING, ids=name_of)
@torch.no_grad()
def test_uncached_is_a_plain_loop(case):
    model, _, scheduler, x, conditioning = setting(case)
    counted = Counted(model)
    denoiser = CachedDenoiser(counted, "never")
    ours = sample(denoiser, scheduler, x, num_steps=STEPS, generator=generators(), **conditioning)
    plain = (
        plain_diffusers(case[0], case[1], model, x, conditioning)
        if isinstance(case, tuple)
        else plain_native(scheduler, model, x, conditioning)
    )
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert counted.calls == denoiser.trace.calls == denoiser.nfe == expected_calls(case)


@functools.cache
def karras_profile(name: str) -> Profile:
    """What calibration measures on the image DiT in the k-diffusion convention; none is shipped."""
    s = subject("image-dit")
    noise, conditioning = s.inputs(2, seed=9)
    samples = CalibrationSamples(noise=noise, kwargs=conditioning, seeds=(0, 1))
    return calibrate(karras_denoiser, name, samples, num_steps=STEPS, progress=False, model_class="Counted")


LENIENT = "sencache:epsilon=1e9,epsilon_start=1e9,max_reuse=2"


@pytest.mark.parametrize("policy", [LENIENT, "uniform:every=2"])
@pytest.mark.parametrize("case", EVERYTHING, ids=name_of)
@torch.no_grad()
def test_cached_is_finite_with_a_faithful_trace(case, policy):
    model, profile, scheduler, x, conditioning = setting(case)
    if profile is None:
        profile = karras_profile(scheduler.name)
    asked: list[float] = []
    counted: Any = Counted(model)
    counted.model_class_name = profile.model.class_name
    denoiser = CachedDenoiser(counted, policy, profile=profile)

    with denoiser.run(timesteps=scheduler.timesteps(STEPS)):

        def called(x, t, **kwargs):
            asked.append(t[0].item())
            return denoiser(x, t, **kwargs)

        y = sample(called, scheduler, x, num_steps=STEPS, generator=generators(), **conditioning)
    trace = denoiser.trace
    assert y.isfinite().all()
    assert [record.t for record in trace.records] == pytest.approx(asked)
    assert trace.calls == expected_calls(case)
    assert counted.calls == trace.model_calls
    assert sum(counted.rows) == sum(trace.nfe_per_sample)
    assert counted.calls < trace.calls
    if policy == LENIENT:  # nothing but max_reuse stops it: two of three calls are reused
        assert trace.model_calls == -(-trace.calls // 3)
    else:
        for record in trace.records[1:]:
            assert record.index is not None
            assert record.evaluated == (record.index % 2 == 0,) * ROWS
