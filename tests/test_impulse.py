"""The linear response of the samplers: against closed forms, recursions by hand and the samplers themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies.base.errors import SettingsError
from cachepolicies.calibration import impulse_response
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.ddpm import DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun

FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
LINEAR = [
    FlowEuler(shift=3.0),
    DDIM(),
    DDIM(prediction_type="v", eta=0.7),
    DDPM(),
    KarrasEuler(),
    KarrasHeun(),
    from_class_name("FlowMatchEulerDiscreteScheduler"),
    from_class_name("FlowMatchHeunDiscreteScheduler"),
    from_class_name("UniPCMultistepScheduler"),
    from_class_name("UniPCMultistepScheduler", **FLOW, flow_shift=3.0),
    from_class_name("DPMSolverMultistepScheduler", **FLOW),
    from_class_name("DPMSolverMultistepScheduler", solver_order=3),
    from_class_name("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    from_class_name("EulerDiscreteScheduler"),
    from_class_name("EulerAncestralDiscreteScheduler"),
    from_class_name("HeunDiscreteScheduler"),
    from_class_name("DDIMScheduler", clip_sample=False),
    from_class_name("CogVideoXDPMScheduler"),
]
SINGLE = [scheduler for scheduler in LINEAR if scheduler.evaluations_per_step == 1]


def number(scheduler):
    return f"{LINEAR.index(scheduler)}-{scheduler.name}"


def run_on(scheduler: Scheduler, num_steps: int, outputs: np.ndarray) -> list[np.ndarray]:
    """What the denoiser is given at every evaluation but the first, then the sample, for outputs (M, B)."""
    rows = outputs.shape[1]
    run = scheduler.begin(num_steps, generator=[torch.Generator().manual_seed(5) for _ in range(rows)])
    x, seen = torch.zeros(rows, 1, 1, 1, dtype=torch.float64), []
    for output in outputs:
        seen.append(run.model_input(x)[0].flatten().double().numpy())
        x = run.advance(torch.from_numpy(output).reshape(rows, 1, 1, 1), x)
    assert run.finished
    return [*seen[1:], x.flatten().double().numpy()]


@pytest.mark.parametrize("scheduler", LINEAR, ids=number)
def test_any_change_of_the_outputs_is_a_sum_of_impulses(scheduler):
    steps = 7
    response = impulse_response(scheduler, steps)
    evaluations = len(response.t)
    assert [response.t[k] for k in response.first] == pytest.approx(scheduler.timesteps(steps), rel=1e-6)
    assert evaluations == scheduler.evaluations_per_step * (steps - 1) + 1
    assert response.c.shape == (evaluations, evaluations)
    outputs = np.random.default_rng(0).normal(size=(evaluations, 2))
    seen = np.stack(run_on(scheduler, steps, outputs))
    moved = response.c @ (outputs[:, 1] - outputs[:, 0])
    assert seen[:, 1] - seen[:, 0] == pytest.approx(moved, rel=1e-4, abs=1e-5 * np.abs(seen).max())
    assert np.array_equal(response.c, np.tril(response.c))  # an output changes nothing before it


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_adds_every_output_times_its_step(shift):
    scheduler = FlowEuler(shift=shift)
    sigmas = [t / 1000 for t in (*scheduler.timesteps(9), 0.0)]
    assert impulse_response(scheduler, 9).c == pytest.approx(np.tril(np.tile(np.diff(sigmas), (9, 1))), rel=1e-6)


def test_ddim_is_the_recursion_of_its_paper():
    scheduler = DDIM()
    alpha_bar = np.array(scheduler.alpha_bars(6))
    data, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    expected = np.zeros((6, 6))
    for j in range(6):
        kept = data[j + 1] / data[j]
        expected[j, :j] = kept * expected[j - 1, :j]
        expected[j, j] = noise[j + 1] - kept * noise[j]
    assert impulse_response(scheduler, 6).c == pytest.approx(expected, rel=1e-9)


def test_a_multistep_sampler_remembers_the_output_before():
    """DPM-Solver++ 2M (arXiv 2211.01095, eq. for the second-order step), on the flow's log-SNR."""
    steps = 8
    scheduler = from_class_name("DPMSolverMultistepScheduler", **FLOW)
    sampler = scheduler._prepared(steps)
    sigma = sampler.sigmas.double().numpy()
    log_snr = np.log(1 - sigma) - np.log(sigma, out=np.full_like(sigma, -np.inf), where=sigma > 0)
    c = impulse_response(scheduler, steps).c
    # x at j, outputs v: data = x - sigma v; x' = (s'/s) x - (1 - s')(exp(-h) - 1) D, D from two predictions of the data
    for j in (2, 3, 4):
        h, before = log_snr[j + 1] - log_snr[j], log_snr[j] - log_snr[j - 1]
        ratio = h / before / 2
        factor = -(1 - sigma[j + 1]) * np.expm1(-h)
        assert c[j, j] == pytest.approx(-factor * (1 + ratio) * sigma[j], rel=2e-4)
        direct = sigma[j + 1] / sigma[j] * c[j - 1, j - 1] + factor * (1 + ratio) * c[j - 1, j - 1]
        assert c[j, j - 1] == pytest.approx(direct + factor * ratio * sigma[j - 1], rel=2e-4)


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, len(SINGLE) - 1), steps=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_the_bound_of_a_one_step_sampler_is_the_product_over_its_steps(index, steps, seed):
    scheduler = SINGLE[index]
    response = impulse_response(scheduler, steps)
    alpha_x = np.random.default_rng(seed).uniform(0, 3, steps)
    bound = response.bound(alpha_x)
    # whatever the sampler: an error that grows by no more than alpha_x at every evaluation stays within the bound
    signs = np.random.default_rng(seed + 1).choice((-1.0, 1.0), steps)
    for k in range(steps):
        output = np.zeros(steps)
        output[k] = 1.0
        for j in range(k, steps - 1):
            output[j + 1] = signs[j] * alpha_x[j + 1] * (response.c[j] @ output)
        assert abs(response.c[-1] @ output) <= bound[k] * (1 + 1e-9)
    if scheduler.name in ("flow-euler", "ddim", "ddpm", "karras-euler"):
        c = response.c
        # A_j from the latent that step 0 alone has changed
        a = [1.0, *(c[j, 0] / c[j - 1, 0] for j in range(1, steps))]
        for k in range(steps):
            grown = [abs(a[j]) + abs(c[j, j]) * alpha_x[j] for j in range(k + 1, steps)]
            assert bound[k] == pytest.approx(abs(c[k, k]) * np.prod(grown), rel=1e-7)


def test_a_longer_run_takes_well_under_a_second():
    response = impulse_response(FlowEuler(), 250)
    assert response.bound(np.ones(250)).shape == (250,)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDPMScheduler", {"prediction_type": "sample"}),
        ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ],
)
def test_a_sampler_that_clips_has_no_linear_response(name, config):
    with pytest.raises(SettingsError, match=f"scheduler '{name}' is not linear in the denoiser's outputs: .*measured"):
        impulse_response(from_class_name(name, **config), 10)


def test_the_number_of_steps_is_checked():
    with pytest.raises(SettingsError, match="num_steps must be a positive integer, got 0"):
        impulse_response(FlowEuler(), 0)
