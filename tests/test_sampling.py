"""The sampling loop: against plain loops, exact solutions and bad input."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, CalibrationSamples, calibrate
from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.contracts import RunAwareDenoiser
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.ddpm import DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import SUPPORTED, from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun
from cachepolicies.schedulers.sample import Evaluation, sample
from plain_loops import plain_loop

MEAN, SPREAD = 0.2, 0.3
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
COGVIDEOX = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SUPPORTED),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {"prediction_type": "sample"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}),
    ("CogVideoXDDIMScheduler", COGVIDEOX),
    ("CogVideoXDPMScheduler", COGVIDEOX),
]
NATIVE = [FlowEuler(shift=3.0), DDIM(), DDIM(eta=0.7), DDPM(), KarrasEuler(), KarrasHeun()]
EVERYTHING = [
    *((repr(one), one) for one in NATIVE),
    *((f"{name} {config}", from_class_name(name, **config)) for name, config in CASES),
]


def each(keep):
    """Parametrise a test with the schedulers that ``keep`` accepts."""
    return pytest.mark.parametrize("scheduler", [pytest.param(one, id=name) for name, one in EVERYTHING if keep(one)])


adapters = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
everything = each(lambda one: True)
deterministic = each(lambda one: not one.stochastic)
stochastic = each(lambda one: one.stochastic)
# Diffusers' stochastic flow step draws fresh noise around the predicted data, which narrows the distribution.
faithful = each(lambda one: not one.config.get("stochastic_sampling"))


def gaussian(scheduler):
    """Return the exact denoiser of N(MEAN, SPREAD^2) in what ``scheduler`` wants predicted."""

    def denoiser(x, t):
        shape = (-1,) + (1,) * (x.ndim - 1)
        alpha, sigma = scheduler.alpha(t).view(shape), scheduler.sigma(t).view(shape)
        total = (alpha * SPREAD) ** 2 + sigma**2
        data = MEAN + alpha * SPREAD**2 / total * (x.double() - alpha * MEAN)
        noise = sigma / total * (x.double() - alpha * MEAN)
        outputs = {"x0": data, "noise": noise, "velocity": noise - data, "v": alpha * noise - sigma * data}
        return outputs[scheduler.prediction_type].to(x.dtype)

    return denoiser


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_denoiser_calibrated_for_another_family_is_refused():
    flow = FlowEuler()
    samples = CalibrationSamples.from_seeds(range(2), (3,))
    profile = calibrate(lambda x, t: 0.5 * x + 1.0, flow, samples, num_steps=6, progress=False, name="flow")
    denoiser = CachedDenoiser(lambda x, t: 0.5 * x + 1.0, "sencache", profile=profile, epsilon=1e9)
    with pytest.raises(ProfileError, match="calibrated for scheduler family 'flow', scheduler 'ddim' has 'vp'"):
        sample(denoiser, "ddim", torch.randn(2, 3), num_steps=6)
    assert sample(denoiser, flow, torch.randn(2, 3), num_steps=6).isfinite().all()


@adapters
@pytest.mark.parametrize("num_steps", [1, 2, 20])
def test_an_adapter_samples_as_a_plain_diffusers_loop(case, num_steps):
    name, config = case
    adapter = from_class_name(name, **config)
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    ours = sample(gaussian(adapter), adapter, x, num_steps=num_steps, generator=generators(1, 2, 3))
    reference = getattr(diffusers, name)(**config)
    theirs = plain_loop(reference, gaussian(adapter), x, num_steps, generators(1, 2, 3))
    assert torch.equal(ours, theirs)
    assert bool(torch.isfinite(ours).all())


@faithful
def test_the_samples_have_the_distribution_of_the_data(scheduler):
    # Wrong alpha, sigma, t or prediction type would show here, whatever diffusers does.
    x = torch.randn(8_000, 1, generator=torch.Generator().manual_seed(3))
    num_steps = 200 if scheduler.name == "CogVideoXDPMScheduler" else 50  # its noise is exact for small steps only
    drawn = sample(gaussian(scheduler), scheduler, x, num_steps=num_steps, generator=torch.Generator().manual_seed(4))
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(SPREAD, rel=0.3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_equals_diffusers(shift):
    scheduler = FlowEuler(shift=shift)
    x = torch.randn(2, 5)
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = plain_loop(reference, gaussian(scheduler), x, 30)
    torch.testing.assert_close(sample(gaussian(scheduler), scheduler, x, num_steps=30), theirs, rtol=1e-5, atol=1e-6)


PREDICTIONS = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("spacing", [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_equals_diffusers(prediction, schedule, spacing, eta):
    scheduler = DDIM(
        prediction_type=prediction, beta_schedule=schedule, spacing=spacing[0], steps_offset=spacing[1], eta=eta
    )
    reference = diffusers.DDIMScheduler(
        prediction_type=PREDICTIONS[prediction],
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else schedule,
        timestep_spacing=spacing[0],
        steps_offset=spacing[1],
        clip_sample=False,
    )
    reference.step = lambda *a, _step=reference.step, **k: _step(*a, eta=eta, **k)
    # The trailing spacing starts where a cosine schedule has hardly any signal: alpha = 5e-5 magnifies float32 noise.
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    ours = sample(gaussian(scheduler), scheduler, x, num_steps=25, generator=generators(5, 6))
    theirs = plain_loop(reference, gaussian(scheduler), x, 25, generators(5, 6))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("spacing", [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("num_steps", [25, 30])
def test_ddpm_equals_diffusers(prediction, schedule, spacing, num_steps):
    scheduler = DDPM(prediction_type=prediction, beta_schedule=schedule, spacing=spacing[0], steps_offset=spacing[1])
    reference = diffusers.DDPMScheduler(
        prediction_type=PREDICTIONS[prediction],
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else schedule,
        timestep_spacing=spacing[0],
        steps_offset=spacing[1],
        clip_sample=False,
    )
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    ours = sample(gaussian(scheduler), scheduler, x, num_steps=num_steps, generator=generators(5, 6))
    theirs = plain_loop(reference, gaussian(scheduler), x, num_steps, generators(5, 6))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


def k_diffusion_loop(denoiser, sigmas, x, heun):
    """Sample as k-diffusion's sample_euler and sample_heun do without churn."""
    x = x * sigmas[0]
    evaluated = []
    for now, following in pairwise(sigmas):
        evaluated.append(now)
        slope = (x - denoiser(x, torch.full((len(x),), now))) / now
        predicted = x + slope * (following - now)
        if heun and following > 0:
            evaluated.append(following)
            second = (predicted - denoiser(predicted, torch.full((len(x),), following))) / following
            predicted = x + (slope + second) / 2 * (following - now)
        x = predicted
    return x, evaluated


@pytest.mark.parametrize("scheduler", [KarrasEuler(), KarrasHeun(), KarrasHeun(sigma_max=10.0, rho=3.0)], ids=str)
@pytest.mark.parametrize("num_steps", [1, 2, 15])
def test_karras_equals_the_loop_of_k_diffusion(scheduler, num_steps):
    x = torch.randn(2, 6)
    seen = []

    def counted(x, t):
        assert t.dtype == torch.float32
        seen.append(t[0].item())
        return gaussian(scheduler)(x, t)

    ours = sample(counted, scheduler, x, num_steps=num_steps)
    sigmas = [*scheduler.timesteps(num_steps), 0.0]
    heun = isinstance(scheduler, KarrasHeun)
    theirs, evaluated = k_diffusion_loop(gaussian(scheduler), sigmas, x, heun)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert seen == evaluated
    assert len(seen) == (2 * num_steps - 1 if heun else num_steps)
    assert 0.0 not in seen


def test_order_of_the_karras_solvers():
    # The probability-flow ODE of a Gaussian: the distance to the mean shrinks as the standard deviation does. It is
    # followed down to sigma_min, because the last step, to 0, is of first order in both.
    x = torch.randn(4, 3, dtype=torch.float64)

    def error(scheduler, num_steps):
        levels = []
        sample(gaussian(scheduler), scheduler, x, num_steps=num_steps, callback=lambda e: levels.append(e.x))
        before_last = levels[-2]
        start = x * scheduler.sigma_max
        shrunk = math.sqrt((SPREAD**2 + scheduler.sigma_min**2) / (SPREAD**2 + scheduler.sigma_max**2))
        return (before_last - (MEAN + (start - MEAN) * shrunk)).abs().max().item()

    # sigmas are float32 values for the denoiser, but the levels of the solver are the same ones: no error from that
    for scheduler, order in ((KarrasEuler(sigma_min=0.05), 1), (KarrasHeun(sigma_min=0.05), 2)):
        measured = math.log2(error(scheduler, 64) / error(scheduler, 128))
        assert measured == pytest.approx(order, abs=0.25)


@deterministic
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 4), num_steps=st.integers(1, 12))
def test_a_deterministic_sampler_is_reproducible_and_independent_of_the_batch(scheduler, seed, batch, num_steps):
    x = torch.randn(batch, 3, generator=torch.Generator().manual_seed(seed))
    state = torch.random.get_rng_state()
    first = sample(gaussian(scheduler), scheduler, x, num_steps=num_steps)
    assert torch.equal(first, sample(gaussian(scheduler), scheduler, x, num_steps=num_steps))
    assert torch.equal(state, torch.random.get_rng_state())
    alone = torch.cat([sample(gaussian(scheduler), scheduler, row[None], num_steps=num_steps) for row in x])
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-6)


@stochastic
@settings(max_examples=3, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True), num_steps=st.integers(2, 12))
def test_with_one_generator_a_sample_does_not_depend_on_its_batch(scheduler, seeds, num_steps):
    x = torch.randn(len(seeds), 3, generator=torch.Generator().manual_seed(seeds[0]))
    together = sample(gaussian(scheduler), scheduler, x, num_steps=num_steps, generator=generators(*seeds))
    alone = [
        sample(gaussian(scheduler), scheduler, row[None], num_steps=num_steps, generator=generators(seed))
        for row, seed in zip(x, seeds, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    other = sample(
        gaussian(scheduler), scheduler, x, num_steps=num_steps, generator=generators(*(s + 1 for s in seeds))
    )
    assert not torch.equal(together, other)


@everything
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_sample_has_the_dtype_of_the_noise(scheduler, dtype):
    x = torch.randn(2, 3, dtype=dtype)
    drawn = sample(gaussian(scheduler), scheduler, x, num_steps=4)
    assert drawn.dtype == dtype
    assert drawn.shape == x.shape


def test_every_form_of_output_is_understood():
    scheduler = FlowEuler()
    x = torch.randn(2, 3)
    bare = gaussian(scheduler)
    expected = sample(bare, scheduler, x, num_steps=4)
    for wrapped in (lambda y: (y, "more"), lambda y: [y], lambda y: SimpleNamespace(sample=y)):
        got = sample(lambda x, t, w=wrapped: w(bare(x, t)), scheduler, x, num_steps=4)
        assert torch.equal(got, expected)


def test_arguments_reach_the_denoiser_and_the_scheduler_may_be_a_spec():
    seen = []

    def denoiser(x, t, text, *, scale):
        seen.append((t.shape, text, scale))
        return torch.zeros_like(x)

    x = torch.randn(2, 3)
    assert torch.equal(sample(denoiser, "flow-euler:shift=3", x, "prompt", num_steps=3, scale=2), x)
    assert seen == [((2,), "prompt", 2)] * 3


def test_the_callback_sees_every_evaluation():
    seen: list[Evaluation] = []
    scheduler = KarrasHeun()
    drawn = sample(gaussian(scheduler), scheduler, torch.randn(2, 3), num_steps=3, callback=seen.append)
    assert [(one.index, one.stage) for one in seen] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    levels = scheduler.timesteps(3)
    assert [one.t for one in seen] == [levels[0], levels[1], levels[1], levels[2], levels[2]]
    assert torch.equal(seen[-1].x, drawn)


class Declared(RunAwareDenoiser):
    """A denoiser with runs, which records them."""

    def __init__(self):
        self.log = []

    @contextlib.contextmanager
    def run(self, timesteps=None):
        self.log.append(("start", timesteps))
        try:
            yield
        finally:
            self.log.append("end")

    def __call__(self, x, t):
        self.log.append(t[0].item())
        if len(self.log) > 4:
            raise KeyboardInterrupt
        return x * 0


def test_a_run_is_declared_and_ended_also_by_an_interrupt():
    denoiser = Declared()
    levels = FlowEuler().timesteps(3)
    sample(denoiser, FlowEuler(), torch.randn(1, 2), num_steps=3)
    assert denoiser.log == [("start", levels), *levels, "end"]
    with pytest.raises(KeyboardInterrupt):
        sample(denoiser, FlowEuler(), torch.randn(1, 2), num_steps=3)
    assert denoiser.log[-1] == "end"


def test_gradients_are_left_to_the_caller():
    x = torch.randn(2, 3, requires_grad=True)
    sample(gaussian(FlowEuler()), FlowEuler(), x, num_steps=3).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().min() > 0)
    with torch.no_grad():
        assert not sample(gaussian(FlowEuler()), FlowEuler(), x, num_steps=3).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, InputError, "x has dtype torch.int64; give floating-point noise"),
        ({"x": torch.zeros(())}, InputError, "x has shape (); its first dimension is the batch"),
        ({"x": torch.zeros(0, 3)}, InputError, "x has shape (0, 3); its first dimension is the batch"),
        ({"x": [1.0]}, InputError, "x is [1.0] (list); give a floating-point tensor"),
        ({"num_steps": 0}, SettingsError, "num_steps must be a positive integer, got 0"),
        ({"num_steps": 2.0}, SettingsError, "num_steps must be a positive integer, got 2.0"),
        ({"scheduler": None}, SettingsError, "scheduler is None (NoneType); give a name"),
        ({"generator": generators(1, 2, 3)}, InputError, "3 generators for a batch of 2"),
        ({"generator": 5}, InputError, "generator is 5; give a torch.Generator"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(change, error, message):
    calls = []

    def denoiser(x, t):
        calls.append(t)
        return x

    given = {"scheduler": FlowEuler(), "x": torch.randn(2, 3), "num_steps": 3, **change}
    with pytest.raises(error) as caught:
        sample(denoiser, given.pop("scheduler"), given.pop("x"), **given)
    assert message in str(caught.value)
    assert calls == []


def test_a_bad_output_is_refused():
    x = torch.randn(2, 3)
    with pytest.raises(InputError, match="the denoiser returned a NoneType"):
        sample(lambda x, t: None, FlowEuler(), x, num_steps=2)
    with pytest.raises(InputError, match=r"returned shape \(2, 6\) for an input of shape \(2, 3\)"):
        sample(lambda x, t: torch.cat([x, x], 1), FlowEuler(), x, num_steps=2)
