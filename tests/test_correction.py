"""Deferred correction: an evaluation makes up for the stand-ins before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cachepolicies import CachedDenoiser, NeedsError, PolicyError, RunError, SettingsError, enable, sample
from cachepolicies.contracts import Context, Substitute
from cachepolicies.policies import Schedule
from cachepolicies.schedulers import DDIM, FlowEuler, KarrasEuler
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.substitutes import Linear, Quadratic
from denoisers import SHAPE, Counted, mixture
from scripted import Scripted

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

STEPS = 20
SAMPLERS = {
    "flow-euler": FlowEuler(),
    "ddim": DDIM(),
    "karras-euler": KarrasEuler(sigma_min=0.1, sigma_max=10.0),
    "unipc": from_class_name("UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True),
    "dpm-solver++": from_class_name(
        "DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True
    ),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def polynomial(degree: int, scale: float):
    """A denoiser whose output depends on t alone, as a polynomial, and on the row."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        level = (t.double() / scale).reshape(-1, *[1] * (x.ndim - 1))
        row = torch.linspace(0.5, 1.5, x[0].numel(), dtype=torch.float64).reshape(x.shape[1:])
        powers = torch.stack([(row + k) * level**k for k in range(degree + 1)])
        return powers.mean(0).expand_as(x).to(x)

    return denoise


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def cached(model: Any, sampler: Any, refreshes: Any, substitute: Any, **options: Any) -> Tensor:
    denoiser = CachedDenoiser(
        model, Schedule(refreshes=tuple(refreshes)), substitute=substitute, scheduler=sampler, **options
    )
    return sample(denoiser, sampler, noise(), num_steps=STEPS)


@st.composite
def schedules(draw: st.DrawFn, first: int) -> tuple[int, ...]:
    """Refreshes that begin with so many steps in a row and end with the last step."""
    inner = draw(st.sets(st.integers(first, STEPS - 2), max_size=8))
    return (*range(first), *sorted(inner), STEPS - 1)


@every_sampler
@pytest.mark.parametrize(("kind", "order"), [(Linear, 1), (Quadratic, 2)])
@settings(max_examples=15)
@given(data=st.data())
def test_a_polynomial_of_one_degree_more_leaves_no_error(name, kind, order, data):
    """If the output is such a polynomial and does not follow the latent, the sample is the uncached one."""
    sampler, refreshes = SAMPLERS[name], data.draw(schedules(order + 2))
    scale = max(sampler.timesteps(STEPS))
    model = polynomial(order + 1, scale)
    plain = sample(model, sampler, noise(), num_steps=STEPS)
    made = cached(model, sampler, refreshes, kind(time="t", guard=None, correct=1.0))
    assert (made - plain).abs().max() <= 1e-4 * plain.abs().max()  # samplers of diffusers step in float32


def test_the_latent_is_right_again_after_an_evaluation():
    """Also where the sample itself keeps nothing of earlier outputs, as an Euler step to sigma = 0 does."""
    sampler = SAMPLERS["karras-euler"]
    model, refreshes = polynomial(2, 10.0), (0, 1, 2, 6, 12, STEPS - 1)

    def latents(refreshes: Any, correct: float) -> list[Tensor]:
        seen: list[Tensor] = []
        denoiser = CachedDenoiser(
            model,
            Schedule(refreshes=tuple(refreshes)),
            substitute=Linear(time="t", guard=None, correct=correct),
            scheduler=sampler,
        )
        sample(denoiser, sampler, noise(), num_steps=STEPS, callback=lambda evaluation: seen.append(evaluation.x))
        return seen

    plain, bare, made = latents(range(STEPS), 0.0), latents(refreshes, 0.0), latents(refreshes, 1.0)
    for step in (6, 12):
        torch.testing.assert_close(made[step], plain[step])
        assert not torch.allclose(bare[step], plain[step])


@settings(max_examples=20)
@given(refreshes=schedules(3), share=st.floats(0.1, 0.9))
def test_a_part_of_the_correction_leaves_the_other_part_of_the_error(refreshes, share):
    sampler = FlowEuler()
    model = polynomial(2, 1000.0)
    plain = sample(model, sampler, noise(), num_steps=STEPS)
    bare = cached(model, sampler, refreshes, Linear(time="t", guard=None)) - plain
    assume(bare.abs().max() > 1e-9)
    left = cached(model, sampler, refreshes, Linear(time="t", guard=None, correct=share)) - plain
    torch.testing.assert_close(left, (1 - share) * bare, atol=1e-9, rtol=1e-6)


@given(refreshes=schedules(1))
@settings(max_examples=10)
def test_an_output_that_does_not_change_is_left_as_it_is(refreshes):
    sampler = FlowEuler()
    plain = sample(polynomial(0, 1.0), sampler, noise(), num_steps=STEPS)
    made = cached(polynomial(0, 1.0), sampler, refreshes, Linear(correct=1.0))
    torch.testing.assert_close(made, plain, atol=1e-12, rtol=0)


def test_without_reuse_every_output_is_the_models():
    sampler, model = FlowEuler(), mixture()
    plain = sample(model, sampler, noise(), num_steps=STEPS)
    assert torch.equal(cached(model, sampler, range(STEPS), Linear(correct=1.0)), plain)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16))
def test_a_row_is_corrected_by_its_own_history(seed):
    """Rows refresh at different steps; each is what it is alone."""
    sampler = FlowEuler()
    levels = sampler.timesteps(STEPS)
    draw = torch.Generator().manual_seed(seed)
    script = {t: (torch.rand(3, generator=draw) < 0.6).tolist() for t in levels}
    x = noise(3)

    def run(rows: list[int]) -> Tensor:
        chosen = {t: [reuse[row] for row in rows] for t, reuse in script.items()}
        denoiser = CachedDenoiser(
            Counted(mixture()), Scripted(chosen), substitute=Linear(correct=0.8), scheduler=sampler
        )
        return sample(denoiser, sampler, x[rows], num_steps=STEPS)

    together = run([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], run([row]), atol=1e-12, rtol=1e-12)


def test_what_is_remembered_is_the_evaluation_itself():
    """A second stretch extrapolates from what the model returned, not from what was handed on."""
    sampler = FlowEuler()
    t = sampler.timesteps(STEPS)
    model, x = polynomial(2, 1000.0), noise(1)
    denoiser = CachedDenoiser(
        model, Schedule(refreshes=(0, 1, 4)), substitute=Linear(time="t", guard=None, correct=1.0), scheduler=sampler
    )
    with denoiser.run(timesteps=t):
        outputs = [denoiser(x, torch.full((1,), level, dtype=torch.float64)) for level in t[:6]]
    true = [model(x, torch.full((1,), level, dtype=torch.float64)) for level in t[:6]]
    assert torch.equal(outputs[1], true[1])
    assert not torch.allclose(outputs[4], true[4])
    line = true[4] + (true[4] - true[1]) * (t[5] - t[4]) / (t[4] - t[1])
    torch.testing.assert_close(outputs[5], line)


def test_a_row_that_the_guard_held_back_is_not_corrected():
    sampler = FlowEuler()
    t = sampler.timesteps(STEPS)

    def jumping(x: Tensor, level: Tensor) -> Tensor:
        """Grows so fast in the second row that the line leaves the range seen so far."""
        steep = torch.tensor([1.0, 1e6], dtype=x.dtype).reshape(2, 1, 1, 1)[: x.shape[0]]
        return 1.0 + steep * (1 - level.reshape(-1, 1, 1, 1) / 1000.0).expand_as(x)

    x = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    denoiser = CachedDenoiser(
        jumping, Schedule(refreshes=(0, 1, 4)), substitute=Linear(time="t", guard=1.0, correct=1.0), scheduler=sampler
    )
    with denoiser.run(timesteps=t):
        outputs = [denoiser(x, torch.full((2,), level, dtype=torch.float64)) for level in t[:5]]
    true = jumping(x, torch.full((2,), t[4], dtype=torch.float64))
    assert torch.equal(outputs[4], true)
    assert sum(r.clipped is not None and any(r.clipped) for r in denoiser.trace.records) > 0


def test_a_correction_that_is_not_finite_is_left_out():
    class Wrong(Substitute):
        name = "wrong"
        history = 1
        corrects = True

        def predict(self, context: Context, history: Any) -> Tensor:
            return history[0].output

        def correction(self, context: Context, history: Any) -> Tensor:
            return torch.full_like(history[0].output, torch.nan)

    sampler = FlowEuler()
    refreshes = range(0, STEPS, 2)
    made = cached(mixture(), sampler, refreshes, Wrong())
    assert torch.equal(made, cached(mixture(), sampler, refreshes, "hold"))


def test_a_correction_of_another_shape_is_refused():
    class Wrong(Substitute):
        name = "wrong"
        history = 1
        corrects = True

        def predict(self, context: Context, history: Any) -> Tensor:
            return history[0].output

        def correction(self, context: Context, history: Any) -> Tensor:
            return history[0].output[:, :1]

    with pytest.raises(PolicyError, match="the correction of substitute 'wrong' is"):
        cached(mixture(), FlowEuler(), range(0, STEPS, 2), Wrong())


def test_what_it_needs_is_said_at_set_up():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x)

    linear = Linear(correct=0.8)
    with pytest.raises(NeedsError, match="no scheduler is known; give scheduler="):
        CachedDenoiser(mixture(), "uniform", every=2, substitute=linear)
    with pytest.raises(SettingsError, match="makes 2 evaluations a step"):
        CachedDenoiser(mixture(), "uniform", every=2, substitute=linear, scheduler="karras-heun")
    with pytest.raises(NeedsError, match="corrects evaluations, and at site 'inner'"):
        enable(Network(), "uniform", every=2, substitute=Linear(correct=0.8, scheduler=FlowEuler()), site="inner")
    with pytest.raises(SettingsError, match="correct must be a fraction from 0 to 1"):
        Linear(correct=1.5)


def test_a_run_that_was_not_declared_or_is_another_schedulers_is_refused():
    x = noise(1)
    denoiser = CachedDenoiser(mixture(), Scripted({}), substitute=Linear(correct=0.8), scheduler=FlowEuler())
    with pytest.raises(NeedsError, match="substitute 'linear' with these settings needs the run length"):
        denoiser(x, torch.tensor([1000.0]))
    levels = [1000.0, 990.0, 500.0, 400.0]
    denoiser = CachedDenoiser(mixture(), "uniform", every=2, substitute=Linear(correct=0.8), scheduler=FlowEuler())
    with denoiser.run(timesteps=levels):
        denoiser(x, torch.tensor([1000.0]))
        denoiser(x, torch.tensor([990.0]))
        with pytest.raises(RunError, match="needs the run of its scheduler"):
            denoiser(x, torch.tensor([500.0]))


def test_it_keeps_one_output_more():
    assert Linear(correct=0.8).history == Linear().history + 1


def test_eulers_steps_are_those_of_its_scheduler_and_serve_other_timesteps():
    x = noise(3)
    found = {}
    for steps in ("scheduler", "euler"):
        substitute = Linear(correct=0.8, steps=steps)
        cached = CachedDenoiser(mixture(), "uniform", every=3, substitute=substitute, scheduler=FlowEuler())
        found[steps] = sample(cached, FlowEuler(), x, num_steps=20)
    torch.testing.assert_close(found["euler"], found["scheduler"], atol=1e-4, rtol=1e-4)
    shifted = FlowEuler(shift=3.0)
    errors = {}
    bare = sample(mixture(), shifted, x, num_steps=20)
    for name, correct in (("corrected", 0.8), ("not", 0.0)):
        substitute = Linear(correct=correct, steps="euler")
        cached = CachedDenoiser(mixture(), "uniform", every=2, substitute=substitute, scheduler=FlowEuler())
        errors[name] = (sample(cached, shifted, x, num_steps=20) - bare).norm()
    assert errors["corrected"] < errors["not"]
