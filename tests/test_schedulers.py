"""Schedulers: timesteps, noise levels and settings, against diffusers and closed forms."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies.base.errors import InputError, PluginError, RunError, SettingsError, UnknownNameError
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.ddpm import DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import SUPPORTED, DiffusersScheduler, from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun
from cachepolicies.schedulers.resolve import as_scheduler

FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
COGVIDEOX = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "mu": 0.7}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("UniPCMultistepScheduler", {**FLOW, "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "prediction_type": "sample"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ("DDPMScheduler", {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample", "beta_schedule": "scaled_linear"}),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("CogVideoXDDIMScheduler", COGVIDEOX),
    ("CogVideoXDPMScheduler", COGVIDEOX),
]
ADAPTERS: list[tuple[str, dict[str, Any]]] = [*((name, {}) for name in SUPPORTED), *VARIANTS]
NATIVE = [FlowEuler(), FlowEuler(shift=5.0), DDIM(), DDIM(eta=0.5), DDPM(), KarrasEuler(), KarrasHeun(rho=3.0)]


def adapter_id(case):
    name, config = case
    return name + "".join(f",{key}={value}" for key, value in config.items())


adapters = pytest.mark.parametrize("case", ADAPTERS, ids=adapter_id)


def fresh(case, num_steps):
    """Return diffusers' own scheduler for a case, its timesteps set."""
    name, config = case
    config = dict(config)
    mu = config.pop("mu", None)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(num_steps, **({} if mu is None else {"mu": mu}))
    return scheduler


def noise_level(case, num_steps, index):
    """Return the factors of data and noise in what the denoiser receives at one entry of diffusers' timesteps."""
    factors = []
    for data, noise in torch.eye(2)[:, :, None, None]:
        scheduler = fresh(case, num_steps)
        t = scheduler.timesteps[index]
        if case[0] == "FlowMatchHeunDiscreteScheduler":
            x = scheduler.scale_noise(data, t, noise)
        elif case[0] == "FlowMatchEulerDiscreteScheduler":
            x = scheduler.scale_noise(data, t[None], noise)
        else:
            x = scheduler.scale_model_input(scheduler.add_noise(data, noise, t[None]), t)
        factors.append(x.item())
    return factors


@adapters
def test_noise_levels_are_those_of_diffusers(case):
    name, config = case
    adapter = from_class_name(name, **config)
    timesteps = fresh(case, 10).timesteps
    multistep = name in ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler")
    rounded = multistep and (config.get("use_flow_sigmas") or config.get("use_karras_sigmas"))
    for index, t in enumerate(timesteps):
        alpha, sigma = noise_level(case, 10, index)
        t = t.double()
        if rounded:  # diffusers rounds the t it reports, by less than one
            assert adapter.alpha(t + 1) - 1e-6 <= alpha <= adapter.alpha(t - 1) + 1e-6
            assert adapter.sigma(t - 1) - 1e-6 <= sigma <= adapter.sigma(t + 1) + 1e-6
        else:
            assert adapter.alpha(t).item() == pytest.approx(alpha, abs=2e-5, rel=2e-4)
            assert adapter.sigma(t).item() == pytest.approx(sigma, abs=2e-5, rel=2e-4)


@adapters
def test_timesteps_are_those_of_diffusers_once_each(case):
    adapter = from_class_name(case[0], **case[1])
    expected = list(dict.fromkeys(fresh(case, 12).timesteps.tolist()))
    assert list(adapter.timesteps(12)) == expected
    assert len(expected) == 12


@adapters
def test_a_run_reports_every_evaluation(case):
    adapter = from_class_name(case[0], **case[1])
    reference = fresh(case, 5)
    run = adapter.begin(5)
    x = torch.full((2, 3), 0.1)
    seen = []
    while not run.finished:
        model_input, t = run.model_input(x)
        assert t.shape == (2,)
        assert t.dtype == reference.timesteps.dtype
        assert t.tolist() == [run.t] * 2
        seen.append((run.t, run.stage))
        x = run.advance(torch.zeros_like(model_input), x)
    assert [t for t, _ in seen] == reference.timesteps.tolist()
    assert [t for t, stage in seen if stage == 0] == list(adapter.timesteps(5))
    assert len(seen) == (9 if adapter.evaluations_per_step == 2 else 5)
    with pytest.raises(RunError, match="has finished"):
        run.advance(x, x)


@adapters
def test_config_is_json(case):
    name, config = case
    adapter = from_class_name(name, **config)
    written = json.loads(json.dumps(adapter.config, allow_nan=False))
    assert {key: written[key] for key in config} == config
    assert adapter.name == name


def test_what_the_adapters_declare():
    families = {name: from_class_name(name).family for name in SUPPORTED}
    assert [name for name, family in families.items() if family == "flow"] == list(SUPPORTED[:2])
    assert set(families.values()) == {"flow", "vp"}
    stochastic = {name for name in SUPPORTED if from_class_name(name).stochastic}
    assert stochastic == {"DDPMScheduler", "EulerAncestralDiscreteScheduler", "CogVideoXDPMScheduler"}
    unipc = from_class_name("UniPCMultistepScheduler", **FLOW)
    assert (unipc.family, unipc.prediction_type, unipc.final_t) == ("flow", "velocity", 0.0)
    assert from_class_name("UniPCMultistepScheduler", **FLOW, final_sigmas_type="sigma_min").final_t is None
    assert from_class_name("DDIMScheduler").final_t is None
    assert from_class_name("EulerDiscreteScheduler", prediction_type="sample").prediction_type == "x0"
    assert from_class_name("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++").stochastic
    assert from_class_name("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True).stochastic


@adapters
def test_the_callers_instance_is_neither_changed_nor_watched(case):
    instance = fresh(case, 7)
    before = {key: repr(value) for key, value in vars(instance).items()}
    adapter = DiffusersScheduler(instance, mu=case[1].get("mu"))
    assert adapter == from_class_name(case[0], **case[1])
    expected = adapter.timesteps(5)
    run, x = adapter.begin(5), adapter.initial(torch.randn(1, 4), 5)
    while not run.finished:
        x = run.advance(run.model_input(x)[0] * 0.1, x)
    adapter.alpha(torch.tensor([3.0]))
    assert {key: repr(value) for key, value in vars(instance).items()} == before
    instance.set_timesteps(3, **({"mu": 0.1} if "mu" in case[1] else {}))
    instance.register_to_config(num_train_timesteps=10)
    assert adapter.timesteps(5) == expected


def test_a_setting_that_diffusers_counts_as_a_default_is_kept():
    instance = diffusers.DDIMScheduler()
    instance.register_to_config(prediction_type="v_prediction")
    assert DiffusersScheduler(instance).prediction_type == "v"


def test_set_shift_is_respected():
    instance = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    instance.set_shift(4.0)
    instance.set_timesteps(9)
    adapter = DiffusersScheduler(instance)
    assert list(adapter.timesteps(9)) == instance.timesteps.tolist()
    assert adapter.config["shift"] == 4.0


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 250])
def test_flow_euler_visits_what_diffusers_visits(shift, num_steps):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(num_steps)
    assert list(FlowEuler(shift=shift).timesteps(num_steps)) == reference.timesteps.tolist()


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 7, 50, 999])
def test_vp_visits_what_diffusers_visits(schedule, spacing, num_steps):
    settings: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
    reference = diffusers.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else schedule, timestep_spacing=spacing, **settings
    )
    reference.set_timesteps(num_steps)
    native = DDIM(beta_schedule=schedule, spacing=spacing, **settings)
    assert list(native.timesteps(num_steps)) == reference.timesteps.tolist()
    t = torch.arange(1000)
    torch.testing.assert_close(native.alpha(t), reference.alphas_cumprod.double().sqrt(), rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(native.sigma(t), (1 - reference.alphas_cumprod.double()).sqrt(), rtol=2e-4, atol=1e-6)


def test_karras_levels_are_eq_5_of_the_paper():
    levels = KarrasEuler(sigma_min=0.01, sigma_max=50.0, rho=7.0).timesteps(6)
    for i, level in enumerate(levels):
        expected = (50 ** (1 / 7) + i / 5 * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7
        assert level == pytest.approx(expected, rel=1e-6)
    assert KarrasHeun().timesteps(1) == (80.0,)


@settings(deadline=None)
@given(
    scheduler=st.one_of(
        st.builds(FlowEuler, shift=st.floats(0.1, 20)),
        st.builds(DDIM, spacing=st.sampled_from(["leading", "trailing"])),
        st.builds(DDPM, num_train_timesteps=st.integers(150, 2000), spacing=st.sampled_from(["leading", "trailing"])),
        st.builds(KarrasHeun, sigma_min=st.floats(1e-3, 1e-1), sigma_max=st.floats(1, 1e3), rho=st.floats(1, 9)),
    ),
    num_steps=st.integers(1, 150),
)
def test_native_timesteps_decrease_and_noise_with_them(scheduler: Scheduler, num_steps):
    timesteps = scheduler.timesteps(num_steps)
    assert len(timesteps) == num_steps
    assert all(after < before for before, after in pairwise(timesteps))
    t = torch.tensor(timesteps, dtype=torch.float64)
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    assert alpha.dtype == sigma.dtype == torch.float64
    assert alpha.shape == sigma.shape == t.shape
    assert bool(torch.all((sigma / alpha.clamp(min=1e-12)).diff() < 0))
    assert scheduler.begin(num_steps).t == timesteps[0]


@settings(deadline=None)
@given(name=st.sampled_from(SUPPORTED), num_steps=st.integers(1, 80))
def test_adapted_timesteps_decrease(name, num_steps):
    timesteps = DiffusersScheduler(getattr(diffusers, name)).timesteps(num_steps)
    assert len(timesteps) == num_steps
    assert all(after < before for before, after in pairwise(timesteps))


@pytest.mark.parametrize("scheduler", NATIVE, ids=str)
def test_config_of_a_native_scheduler_rebuilds_it(scheduler):
    assert type(scheduler)(**json.loads(json.dumps(scheduler.config))) == scheduler


@pytest.mark.parametrize("scheduler", [*NATIVE, from_class_name("DDIMScheduler")], ids=lambda one: one.name)
@pytest.mark.parametrize("num_steps", [0, -3, 2.5, True, "10", None])
def test_num_steps_must_be_a_positive_integer(scheduler, num_steps):
    with pytest.raises(SettingsError, match="num_steps must be a positive integer, got"):
        scheduler.timesteps(num_steps)
    with pytest.raises(SettingsError, match="num_steps must be a positive integer, got"):
        scheduler.begin(num_steps)


def test_num_steps_may_be_a_numpy_integer():
    assert FlowEuler().timesteps(np.int64(3)) == FlowEuler().timesteps(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowEuler(shift=0), "FlowEuler: shift must be a finite number > 0, got 0"),
        (lambda: FlowEuler(shift=float("nan")), "shift must be a finite number > 0"),
        (lambda: DDIM(eta=1.5), "DDIM: eta must be a fraction from 0 to 1, got 1.5"),
        (lambda: DDIM(prediction_type="epsilon"), "prediction_type must be one of a few words"),  # type: ignore[arg-type]
        (lambda: DDPM(beta_start=0.5, beta_end=0.1), "DDPM: beta_start=0.5 and beta_end=0.1 must satisfy"),
        (lambda: DDPM(beta_schedule="squared"), "known: cosine, linear, scaled_linear"),  # type: ignore[arg-type]
        (lambda: KarrasHeun(sigma_min=2.0, sigma_max=1.0), "KarrasHeun: sigma_min=2.0 must be below sigma_max=1.0"),
        (lambda: DDIM().timesteps(1001), "num_steps=1001 exceeds num_train_timesteps=1000"),
        (lambda: DDIM(steps_offset=1).timesteps(1000), "beyond the last trained t, 999; lower steps_offset=1"),
    ],
)
def test_bad_native_settings(make, message):
    with pytest.raises(SettingsError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_class_name("DDIMScheduler", prediction_typ="x"), "did you mean 'prediction_type'?"),
        (lambda: from_class_name("DDIMScheduler", beta_schedule="wild"), "diffusers refuses the settings: wild"),
        (lambda: from_class_name("DDIMScheduler").timesteps(2000), "diffusers refuses num_steps=2000"),
        (lambda: from_class_name("EulerDiscreteScheduler", timestep_spacing="leading").timesteps(1001), "not decrease"),
        (lambda: from_class_name("UniPCMultistepScheduler", **FLOW, flow_shift=9.0).timesteps(250), "use fewer steps"),
        (
            lambda: from_class_name("DDIMScheduler", steps_offset=5).timesteps(1000),
            "outside the trained range of 0 to 999",
        ),
        (lambda: from_class_name("DDPMScheduler", variance_type="learned_range"), "variance_type='learned_range' is"),
        (lambda: from_class_name("FlowMatchEulerDiscreteScheduler", invert_sigmas=True), "t would rise"),
        (lambda: from_class_name("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), "pass mu=..."),
        (lambda: from_class_name("FlowMatchEulerDiscreteScheduler", mu=1.0), "needs use_dynamic_shifting=True"),
        (lambda: from_class_name("EulerAncestralDiscreteScheduler", prediction_type="sample"), "no step for it"),
        (
            lambda: from_class_name("UniPCMultistepScheduler", prediction_type="flow_prediction"),
            "set use_flow_sigmas=True",
        ),
        (
            lambda: from_class_name("UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="v_prediction"),
            "v belongs to a variance-preserving schedule",
        ),
        (lambda: from_class_name("UniPCMultistepScheduler", **FLOW, predict_x0=False), "set predict_x0=True"),
        (lambda: from_class_name("DPMSolverMultistepScheduler", **FLOW, use_karras_sigmas=True), "not flow sigmas"),
        (
            lambda: from_class_name("UniPCMultistepScheduler", solver_p=diffusers.DDIMScheduler()),
            "a nested scheduler cannot be copied",
        ),
        (
            lambda: from_class_name(
                "EulerDiscreteScheduler", timestep_type="continuous", prediction_type="v_prediction"
            ),
            "use timestep_type='discrete'",
        ),
        (lambda: from_class_name("EulerDiscreteScheduler", interpolation_type="log_linear"), "use 'linear'"),
    ],
)
def test_bad_adapter_settings(make, message):
    with pytest.raises(SettingsError) as caught:
        make()
    assert message in str(caught.value)


def test_an_unsupported_diffusers_class_lists_the_supported_ones():
    for scheduler in (diffusers.PNDMScheduler, diffusers.PNDMScheduler()):
        for adapt in (DiffusersScheduler, as_scheduler):
            with pytest.raises(SettingsError) as caught:
                adapt(scheduler)
            assert "PNDMScheduler is not a diffusers scheduler that is supported" in str(caught.value)
            assert all(name in str(caught.value) for name in SUPPORTED)
    with pytest.raises(UnknownNameError, match="did you mean 'UniPCMultistepScheduler'"):
        from_class_name("UniPCMultistep")

    class DDIMScheduler(diffusers.DDIMScheduler):  # same name, other code
        pass

    with pytest.raises(SettingsError, match="is not a diffusers scheduler that is supported"):
        DiffusersScheduler(DDIMScheduler())


def test_as_scheduler_takes_all_that_it_says():
    scheduler = DDPM()
    assert as_scheduler(scheduler) is scheduler
    assert as_scheduler("flow-euler:shift=3") == FlowEuler(shift=3)
    assert as_scheduler("karras-heun") == KarrasHeun()
    assert as_scheduler(diffusers.DDIMScheduler) == from_class_name("DDIMScheduler")
    assert as_scheduler(diffusers.DDIMScheduler(prediction_type="sample")).prediction_type == "x0"
    unipc = as_scheduler("UniPCMultistepScheduler:use_flow_sigmas=True,prediction_type=flow_prediction,flow_shift=3.0")
    assert unipc == from_class_name("UniPCMultistepScheduler", **FLOW, flow_shift=3.0)


def test_as_scheduler_refuses_the_rest(monkeypatch):
    with pytest.raises(UnknownNameError, match="flow-euler"):
        as_scheduler("flow-eulr")
    with pytest.raises(SettingsError, match=r"give an instance: FlowEuler\(\.\.\.\)"):
        as_scheduler(FlowEuler)
    with pytest.raises(SettingsError, match=r"scheduler is 3 \(int\); give a name"):
        as_scheduler(3)

    class Registry:
        def create(self, spec):
            return object()

    monkeypatch.setattr("cachepolicies.registry.load.schedulers", Registry)
    with pytest.raises(PluginError, match="made a object, not a cachepolicies Scheduler"):
        as_scheduler("odd")


@pytest.mark.parametrize(
    "scheduler", [DDPM(), DDIM(eta=1.0), from_class_name("DDPMScheduler")], ids=lambda one: one.name
)
def test_generators_are_checked(scheduler):
    with pytest.raises(InputError, match=r"generator is 7; give a torch\.Generator"):
        scheduler.begin(4, generator=7)
    with pytest.raises(InputError, match=r"generator is \[\]"):
        scheduler.begin(4, generator=[])
    run = scheduler.begin(4, generator=[torch.Generator(), torch.Generator()])
    x = torch.randn(3, 2)
    with pytest.raises(InputError, match="2 generators for a batch of 3"):
        run.advance(x, x)


def test_importing_does_not_import_diffusers():
    code = (
        "import sys, cachepolicies.schedulers.sample, cachepolicies.schedulers.from_diffusers as d; "
        "assert d.SUPPORTED; "
        "print([m for m in ('diffusers', 'matplotlib', 'scipy.optimize') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
