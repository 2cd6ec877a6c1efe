"""Bad input: a clear error, nothing computed, nothing lost. Each test reads the message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve

from cachepolicies import (
    CachedDenoiser,
    InputError,
    NeedsError,
    ProfileError,
    SettingsError,
    UnknownNameError,
)
from cachepolicies.policies import SenCache, Uniform
from cachepolicies.profiles.schema import ModelInfo, SchedulerInfo
from denoisers import SHAPE, Counted, mixture
from made_profiles import linear_profile

TIMESTEPS = tuple(np.linspace(1000.0, 40.0, 25).tolist())
PROFILE = linear_profile(TIMESTEPS)


def make(policy="sencache", **options):
    return CachedDenoiser(Counted(mixture()), policy, **({"profile": PROFILE} | options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": "sencach"}, UnknownNameError, "unknown policy 'sencach'.*did you mean 'sencache'"),
        ({"scheduler": "flow-eulr"}, UnknownNameError, "unknown scheduler 'flow-eulr'.*did you mean 'flow-euler'"),
        ({"substitute": "hodl"}, UnknownNameError, "unknown substitute 'hodl'.*did you mean 'hold'"),
        ({"profile": "video-dt"}, UnknownNameError, "unknown profile 'video-dt'.*did you mean 'video-dit'"),
        ({"profile": "no/such/file.json"}, ProfileError, "no such file"),
        ({"epsilonn": 0.1}, SettingsError, "unknown setting 'epsilonn'.*did you mean 'epsilon'"),
        ({"epsilon": -0.1}, SettingsError, r"epsilon must be a finite number >= 0, got -0\.1"),
        ({"epsilon": float("nan")}, SettingsError, r"epsilon must be a finite number >= 0, got nan"),
        ({"epsilon": "0.1"}, SettingsError, r"epsilon must be a finite number >= 0, got '0\.1' \(str\)"),
        ({"max_reuse": -1}, SettingsError, r"max_reuse must be an integer >= 0, got -1"),
        ({"max_reuse": 1.5}, SettingsError, r"max_reuse must be an integer >= 0, got 1\.5"),
        ({"start_fraction": 1.2}, SettingsError, r"start_fraction must be a fraction from 0 to 1, got 1\.2"),
        ({"interpolation": "cubic"}, SettingsError, "interpolation must be one of.*linear, nearest"),
        ({"policy": "sencache:epsilon=-1"}, SettingsError, r"epsilon must be a finite number >= 0, got -1"),
        ({"policy": "sencache:epsilon"}, SettingsError, "sencache:epsilon"),
        ({"policy": "uniform:every=2,evaluations=3"}, SettingsError, "set exactly one of every and evaluations"),
        (
            {"profile": None, "learn": False},
            NeedsError,
            r"needs a profile with alpha_t, alpha_x.*cachepolicies calibrate",
        ),
        ({"cfg": "double"}, SettingsError, "cfg must be one of.*batched, separate"),
        ({"branches": "both"}, SettingsError, "branches must be one of"),
        ({"audit": 1.5}, SettingsError, r"audit must be a fraction from 0 to 1, got 1\.5"),
        ({"per_sample": 1}, SettingsError, "per_sample must be True or False"),
        ({"x_name": "latent"}, SettingsError, "x_name names 'latent', but the model's arguments are"),
        ({"batched": ("prompt",)}, SettingsError, "batched names 'prompt'"),
    ],
)
def test_set_up(options, error, message):
    model = lambda x, t: x  # noqa: E731
    policy = options.pop("policy", "sencache")
    with pytest.raises(error, match=message):
        CachedDenoiser(model, policy, **({"profile": PROFILE} | options))


def test_a_model_that_cannot_be_called():
    with pytest.raises(SettingsError, match="model is a int; a denoiser is a callable"):
        CachedDenoiser(3, "never")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ModelInfo("OtherTransformer")}, "calibrated for the model class 'OtherTransformer'.*'Counted'"),
        ({"scheduler": SchedulerInfo("ddim", "vp")}, "calibrated for scheduler family 'vp'.*'flow-euler' has 'flow'"),
        ({"prediction_type": "noise"}, "calibrated for prediction type 'noise'.*has 'velocity'"),
    ],
)
def test_a_profile_of_something_else_is_refused_naming_both(change, message):
    with pytest.raises(ProfileError, match=message):
        make(profile=evolve(PROFILE, **change), scheduler="flow-euler")


def test_a_profile_without_the_tables_needed():
    with pytest.raises(NeedsError, match="alpha_t"):
        make(profile=evolve(PROFILE, curves={"alpha_x": PROFILE.curves["alpha_x"]}))


@pytest.mark.parametrize("first", [1.0, 30_000.0])
def test_a_profile_in_other_units_of_t_is_refused(first):
    with pytest.raises(ProfileError, match="was calibrated for t from 1000 to 40, this run begins at"):
        make()(torch.zeros(2, *SHAPE), first)


def test_another_resolution_step_count_or_dtype_is_allowed_and_noted():
    denoiser = make(epsilon=1e9, epsilon_start=1e9)
    steps = TIMESTEPS[::2]
    with denoiser.run(timesteps=steps) as trace:
        for t in steps:
            denoiser(torch.randn(2, *SHAPE).double(), t)
    assert trace.notes == [
        "profile 'constant' was calibrated with 25 steps, used with 13",
        "profile 'constant' was calibrated in float32, used in float64",
    ]


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), 1.0, "x is a tensor of torch.int64; the latent is a floating-point"),
        ([1.0], 1.0, "x is a list"),
        (torch.zeros(0, 3), 1.0, r"x has shape \(0, 3\)"),
        (torch.tensor(1.0), 1.0, r"x has shape \(\)"),
        (torch.zeros(2, 3), torch.zeros(3), r"t has shape \(3,\) and x has 2 rows"),
        (torch.zeros(2, 3), torch.zeros(3, 2), r"t has shape \(3, 2\) and x has 2 rows"),
        (torch.zeros(2, 3), torch.zeros(2, 0), r"t has shape \(2, 0\) and x has 2 rows"),
        (torch.zeros(2, 3), torch.tensor([1.0, 2.0]), r"t differs between the rows of one call: \[1.0, 2.0\]"),
        (torch.zeros(2, 3), float("nan"), "t is nan; the noise level has to be finite"),
        (torch.zeros(2, 3), torch.tensor(float("inf")), "t is inf"),
        (torch.zeros(2, 3), "1.0", r"t is '1.0' \(str\)"),
        (torch.zeros(2, 3), None, r"t is None"),
    ],
)
def test_calls(x, t, message):
    calls = []

    def model(x, t):
        calls.append(1)
        return x

    denoiser = CachedDenoiser(model, "never")
    with pytest.raises(InputError, match=message):
        denoiser(x, t)
    assert not calls


def test_a_call_without_t():
    with pytest.raises(InputError, match=r"the call has no t: it was looked for at position 1 and as t, timestep"):
        CachedDenoiser(lambda *args, **kwargs: args[0], "never")(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"returned a NoneType without a tensor `\.sample`"),
        ((), "returned a tuple that is empty"),
        (["a"], "returned a list whose first element is str"),
        ({"sample": torch.zeros(2, 3)}, "returned a dict"),
        (torch.zeros(3, 3), r"returned a tensor of shape \(3, 3\) for 2 rows"),
        (torch.tensor(1.0), r"returned a tensor of shape \(\) for 2 rows"),
    ],
)
def test_outputs(output, message):
    denoiser = CachedDenoiser(lambda x, t: output, Uniform(every=2))
    with denoiser.run(timesteps=(1.0, 0.5, 0.2)), pytest.raises(InputError, match=message):
        denoiser(torch.zeros(2, 3), 1.0)
    assert CachedDenoiser(lambda x, t: output, "never")(torch.zeros(2, 3), 1.0) is output  # as without a cache


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much", None])
def test_a_tolerance_function_that_returns_no_tolerance(value):
    denoiser = make(SenCache(epsilon=lambda t: value))
    with pytest.raises(SettingsError, match=r"epsilon\(1000\) returned .*; a tolerance is finite and >= 0"):
        denoiser(torch.zeros(2, *SHAPE), 1000.0)
    assert denoiser.model.calls == 0


def test_more_evaluations_than_steps():
    denoiser = CachedDenoiser(lambda x, t: x, "uniform:evaluations=30")
    with (
        pytest.raises(SettingsError, match="evaluations=30, but the run has 25 steps only"),
        denoiser.run(timesteps=TIMESTEPS),
    ):
        denoiser(torch.zeros(2, 3), 1000.0)


def test_branch_names():
    denoiser = CachedDenoiser(lambda x, t: x, "never")
    with pytest.raises(SettingsError, match="branch is 3; name a branch by a word"):
        denoiser(torch.zeros(2, 3), 1.0, branch=3)  # type: ignore[arg-type]
