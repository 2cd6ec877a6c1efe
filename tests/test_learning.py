"""Learning from a user's own runs: the first is uncached, the next are planned, nothing is used for something else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cachepolicies
from cachepolicies import CachedDenoiser, CacheWarning, Profile, sample
from cachepolicies.learning import LearnedProfiles, Subject, default_folder
from cachepolicies.profiles.io import read_profile
from cachepolicies.reference import workloads
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun
from denoisers import SHAPE, Counted, mixture
from more_pipelines import MORE
from tiny_pipelines import PIPELINES

STEPS = 20
TIMESTEPS = FlowEuler().timesteps(STEPS)


class Network(nn.Module):
    """A small network with weights to tell it by."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.calls = 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        self.calls += 1
        level = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 1000.0
        return x - torch.tanh(self.inner(x)) * (1.0 - level) ** 2


def loop(denoiser: Any, noise: Tensor, timesteps: tuple[float, ...] = TIMESTEPS) -> Tensor:
    """A plain Euler loop that declares nothing."""
    x = noise
    for t, after in pairwise((*timesteps, 0.0)):
        x = x + (after - t) / 1000.0 * denoiser(x, t)
    return x


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


# --- the line that stands for the project ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, "sencache"])
@pytest.mark.parametrize("build", [lambda: Counted(mixture()), Network, lambda: lambda x, t: mixture()(x, t)])
def test_with_nothing_else_the_first_run_is_bare_and_the_second_cached(tmp_path, policy, build):
    model = build()
    noise = torch.randn(2, *(SHAPE if not isinstance(model, Network) else (6,)))
    denoiser = CachedDenoiser(model, policy, learn=tmp_path)
    expected = loop(model, noise)
    assert torch.equal(loop(denoiser, noise), expected)
    assert denoiser.nfe == STEPS
    extra = 0 if policy is None else 2 * (STEPS - 1)
    assert denoiser.trace.measurements == extra
    again = loop(denoiser, noise)
    assert denoiser.nfe <= 0.7 * STEPS
    assert (again - expected).norm() < 0.1 * (expected - noise).norm()
    loop(denoiser, noise)
    assert denoiser.nfe <= 0.7 * STEPS


def test_it_says_what_it_does(tmp_path, noise):
    model = Network()
    denoiser = CachedDenoiser(model, budget=0.4, learn=tmp_path)
    assert "nothing is known of the model yet" in repr(denoiser)
    loop(denoiser, noise)
    assert any("recorded to learn from" in note for note in denoiser.trace.notes)
    loop(denoiser, noise)
    assert "learned from your own runs: 8 of 20 steps are evaluated" in repr(denoiser)
    assert any("learned from your own runs" in note for note in denoiser.trace.notes)


def test_the_evaluations_that_sensitivities_cost_are_said_before_and_counted(tmp_path, noise):
    model = Network()
    denoiser = CachedDenoiser(model, "sencache", learn=tmp_path)
    denoiser(noise, TIMESTEPS[0])
    assert "twice more to measure" in denoiser.trace.notes[0]
    for t in TIMESTEPS[1:]:
        denoiser(noise * t / 1000.0, t)
    assert model.calls == STEPS + denoiser.trace.measurements == STEPS + 2 * (STEPS - 1)
    assert f"{2 * (STEPS - 1)} further ones to measure" in denoiser.trace.summary()
    assert denoiser.trace.to_dict()["measurements"] == 2 * (STEPS - 1)


def test_a_declared_run_is_learned_from_as_soon_as_it_is_complete(tmp_path, noise):
    model = Network()
    first = CachedDenoiser(model, budget=8, scheduler=FlowEuler(), learn=tmp_path)
    sample(first, FlowEuler(), noise, num_steps=STEPS)
    assert len(list(tmp_path.iterdir())) == 1
    second = CachedDenoiser(model, budget=8, scheduler=FlowEuler(), learn=tmp_path)
    sample(second, FlowEuler(), noise, num_steps=STEPS)
    assert second.nfe == 8


def test_a_learned_run_is_as_good_as_one_planned_from_a_recording_of_it(tmp_path):
    workload = workloads.sound_transformer()
    one, many = workload.draw([1000]), workload.draw(range(2000, 2004))
    denoiser = CachedDenoiser(workload.denoiser, budget=13, scheduler=workload.scheduler, learn=tmp_path)
    with torch.no_grad():
        expected = sample(workload.denoiser, workload.scheduler, many.noise, *many.args, num_steps=50)
        sample(denoiser, workload.scheduler, one.noise, *one.args, num_steps=50)
        found = sample(denoiser, workload.scheduler, many.noise, *many.args, num_steps=50)
        fewer = sample(workload.denoiser, workload.scheduler, many.noise, *many.args, num_steps=13)
    assert denoiser.nfe == 13
    assert (found - expected).norm() < 0.1 * (fewer - expected).norm()


# --- what it is never used for ---------------------------------------------------------------------------------------


def test_another_run_is_learned_for_itself(tmp_path, noise):
    model = Network()
    denoiser = CachedDenoiser(model, budget=0.5, learn=tmp_path)

    def evaluated(x: Tensor, steps: int = STEPS) -> float:
        with denoiser.run(timesteps=FlowEuler().timesteps(steps)):
            loop(denoiser, x, FlowEuler().timesteps(steps))
        return denoiser.nfe

    assert evaluated(noise) == STEPS
    assert evaluated(noise) == STEPS / 2
    assert evaluated(noise, 30) == 30
    assert evaluated(noise, 30) == 15
    assert evaluated(torch.randn(2, 3, 6)) == STEPS  # another shape
    assert evaluated(noise.double().float().repeat(2, 1)) == STEPS / 2  # another batch is the same


def test_an_undeclared_run_that_goes_elsewhere_is_evaluated(tmp_path, noise):
    model = Network()
    denoiser = CachedDenoiser(model, budget=0.5, learn=tmp_path)
    loop(denoiser, noise)
    loop(denoiser, noise)
    assert denoiser.nfe == STEPS / 2
    others = FlowEuler().timesteps(13)  # begins at the same t
    bare = loop(model, noise, others)
    assert torch.equal(loop(denoiser, noise, others), bare)
    assert any("is not where runs that begin like this went before" in note for note in denoiser.trace.notes)
    loop(denoiser, noise, others)  # expected no more: recorded
    loop(denoiser, noise, others)
    assert denoiser.nfe < 13
    with denoiser.run(timesteps=TIMESTEPS):  # declared, the first is served as before
        loop(denoiser, noise)
    assert denoiser.nfe == STEPS / 2


@pytest.mark.parametrize(
    "change", ["weights", "scheduler", "guidance", "dtype", "config", "lora"], ids=lambda change: f"another {change}"
)
def test_what_is_another_is_told_apart(change):
    def subject(**changed: Any) -> str:
        network: Any = Network(seed=changed.get("weights", 0))
        if "config" in changed:
            network.config = {"depth": changed["config"]}
        if "lora" in changed:
            network.adapter = nn.Linear(2, 2)
        return Subject.of(
            network,
            network,
            FlowEuler(shift=changed.get("scheduler", 1.0)),
            shape=(6,),
            dtype=changed.get("dtype", torch.float32),
            copies=1,
            site="output",
            guidance=changed.get("guidance"),
        ).digest

    values = {"weights": 1, "scheduler": 3.0, "guidance": 5.0, "dtype": torch.bfloat16, "config": 2, "lora": True}
    assert subject() == subject()
    assert subject() != subject(**{change: values[change]})


def test_a_function_is_learned_of_in_this_process_only(tmp_path):
    def model(x, t):
        return mixture()(x, t)

    denoiser = CachedDenoiser(model, learn=tmp_path)
    noise = torch.randn(2, *SHAPE)
    loop(denoiser, noise)
    loop(denoiser, noise)
    assert denoiser.nfe == STEPS / 2
    assert list(tmp_path.iterdir()) == []


def test_samplers_that_cannot_be_learned_from_stay_uncached(tmp_path):
    model = Counted(mixture())
    denoiser = CachedDenoiser(lambda x, t: mixture()(x, t), learn=tmp_path)
    noise = torch.randn(2, *SHAPE)
    del model
    for _ in range(2):
        sample(denoiser, KarrasHeun(), noise, num_steps=8)
        assert denoiser.cache_ratio == 0
    assert "nothing was learned: the denoiser was called twice at t=" in repr(denoiser)


def test_a_run_that_broke_off_teaches_nothing(tmp_path, noise):
    model = Network()
    denoiser = CachedDenoiser(model, learn=tmp_path)

    def interrupted() -> None:
        with denoiser.run(timesteps=TIMESTEPS):
            for t in TIMESTEPS[:12]:
                denoiser(noise, t)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with denoiser.run(timesteps=TIMESTEPS):
        for t in TIMESTEPS[:12]:  # left early, without an error
            denoiser(noise * t / 1000, t)
    with denoiser.run(timesteps=TIMESTEPS):
        loop(denoiser, noise)
    assert denoiser.nfe == STEPS  # was not learned before
    assert len(list(tmp_path.iterdir())) == 1


def test_it_can_be_switched_off(tmp_path, noise, monkeypatch):
    denoiser = CachedDenoiser(Network(), budget=0.5, learn=False)
    with denoiser.run(timesteps=TIMESTEPS):
        loop(denoiser, noise)
    assert denoiser.nfe == STEPS / 2  # evenly spaced from the first run on
    monkeypatch.setenv("CACHEPOLICIES_LEARN", "0")
    denoiser = CachedDenoiser(Network(), budget=0.5)
    with denoiser.run(timesteps=TIMESTEPS):
        loop(denoiser, noise)
    assert denoiser.nfe == STEPS / 2


# --- where it is kept ------------------------------------------------------------------------------------------------


def learned_once(folder: Path, noise: Tensor) -> Path:
    denoiser = CachedDenoiser(Network(), scheduler=FlowEuler(), learn=folder)
    sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
    (place,) = folder.iterdir()
    return place / "profile.json"


def test_what_is_kept_is_a_profile_like_any_other(tmp_path, noise):
    path = learned_once(tmp_path, noise)
    profile = read_profile(path)
    assert profile.trajectory == "recorded"
    assert profile.timesteps == TIMESTEPS
    denoiser = CachedDenoiser(Network(), profile=path, budget=6, learn=False)
    sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
    assert denoiser.nfe == 6


@pytest.mark.parametrize("damage", ["cut", "tables", "empty", "words"])
def test_a_damaged_one_is_learned_anew(tmp_path, noise, damage):
    path = learned_once(tmp_path, noise)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "tables":
        path.with_suffix(".safetensors").write_bytes(b"nothing")
    elif damage == "empty":
        path.write_text("")
    else:
        path.write_text(json.dumps({"format": "something else"}))
    fresh = LearnedProfiles(tmp_path)  # as another process would
    cached = CachedDenoiser(Network(), scheduler=FlowEuler(), budget=0.5, learn=False)
    cached.choice.learned = fresh  # type: ignore[attr-defined]
    with pytest.warns(CacheWarning, match="damaged and is learned anew"):
        sample(cached, FlowEuler(), noise, num_steps=STEPS)
    assert cached.nfe == STEPS
    sample(cached, FlowEuler(), noise, num_steps=STEPS)
    assert cached.nfe == STEPS / 2
    assert read_profile(path).timesteps == TIMESTEPS


def test_a_folder_that_cannot_be_written_costs_the_next_process_a_run(tmp_path, noise):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    denoiser = CachedDenoiser(Network(), scheduler=FlowEuler(), learn=blocked / "learned")
    with pytest.warns(CacheWarning, match="could not be kept"):
        sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
    sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
    assert denoiser.nfe == STEPS / 2


def test_a_full_disk_leaves_nothing_half_written(tmp_path, noise, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    denoiser = CachedDenoiser(Network(), scheduler=FlowEuler(), learn=tmp_path)
    with pytest.warns(CacheWarning, match="No space left on device"):
        sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
    assert list(tmp_path.iterdir()) == []


_PROCESS = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_learning import Network, STEPS
from cachepolicies import CachedDenoiser, sample
from cachepolicies.schedulers.flow_euler import FlowEuler
torch.set_num_threads(1)
denoiser = CachedDenoiser(Network(), scheduler=FlowEuler(), budget=0.5, learn=sys.argv[1])
found = []
for _ in range(2):
    sample(denoiser, FlowEuler(), torch.randn(1, 6), num_steps=STEPS)
    found.append(denoiser.nfe)
print(found)
"""


def test_two_processes_learn_at_once_and_a_third_finds_it(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(_PROCESS), str(tmp_path), str(Path(__file__).parent)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.strip() in ("[20.0, 10.0]", "[10.0, 10.0]")
    third = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert third.stdout.strip() == "[10.0, 10.0]"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_the_users_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("CACHEPOLICIES_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "learned"
    monkeypatch.delenv("CACHEPOLICIES_HOME")
    assert default_folder().parts[-2:] == ("cachepolicies", "learned")


ALL = {**PIPELINES, **MORE}


# --- in place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_pipeline_that_nobody_calibrated(name, tmp_path):
    """The first generation is the uncached one, the second is planned, and so is the first of another process."""
    tiny = ALL[name]
    pipe = tiny.build()
    expected = tiny.call(pipe, steps=12)
    with cachepolicies.enable(pipe, budget=0.5, learn=tmp_path) as enabled:
        assert torch.equal(tiny.call(pipe, steps=12), expected)
        assert enabled.trace.cache_ratio == 0
        second = tiny.call(pipe, steps=12)
        assert enabled.trace.cache_ratio == pytest.approx(0.5)
        assert "learned from your own runs" in repr(enabled)
        assert torch.isfinite(second).all()
    other = tiny.build()
    with cachepolicies.enable(other, budget=0.5, learn=tmp_path) as enabled:
        assert torch.equal(tiny.call(other, steps=12), second)
        assert enabled.trace.cache_ratio == pytest.approx(0.5)


# each calls its denoiser in another way: two calls for guidance, two experts, a doubled batch, guidance as an argument,
# labels, residuals of a ControlNet, sound
CALLED = ("wan", "wan-2.2", "cogvideox", "flux", "dit", "sd-controlnet", "stable-audio")


@pytest.mark.parametrize("name", CALLED)
def test_a_pipeline_is_calibrated_where_it_runs(name, tmp_path):
    tiny = ALL[name]
    pipe = tiny.build()
    expected = tiny.call(pipe, steps=12)
    arguments = tiny._arguments(tiny.sizes["small"], 0, 1, True)
    options: dict[str, Any] = {"num_inference_steps": 12, "progress": False, "return_dict": False, **arguments}
    profile = cachepolicies.calibrate(pipe, prompts=[{}, {}], checkpoint=tmp_path / "half", **options)
    assert torch.equal(tiny.call(pipe, steps=12), expected)  # as it was
    found = profile if isinstance(profile, dict) else {"": profile}
    assert sorted(found) == (sorted(tiny.denoisers) if len(tiny.denoisers) > 1 else [""])
    for each in found.values():
        assert isinstance(each, Profile)
        assert {"alpha_x", "alpha_t", "rho", "weight"} <= set(each.curves)
        assert each.samples == 2
    resumed = cachepolicies.calibrate(pipe, prompts=[{}, {}], checkpoint=tmp_path / "half", **options)
    assert resumed == profile
    with cachepolicies.enable(pipe, budget=0.5, profile=profile, learn=False) as enabled:
        cached = tiny.call(pipe, steps=12)
        assert enabled.trace.cache_ratio == pytest.approx(0.5)
    assert torch.isfinite(cached).all()
    with cachepolicies.enable(pipe, "sencache", budget=0.5, profile=profile, learn=False) as enabled:
        tiny.call(pipe, steps=12)
        assert 0.2 < enabled.trace.cache_ratio < 0.8


def test_published_numbers_alone_are_learned_beside(tmp_path):
    """Without a policy a published profile is not followed: what is learned measures better than its thresholds."""
    tiny = PIPELINES["flux"]
    pipe = tiny.build()
    with cachepolicies.enable(pipe, budget=0.5, profile="flux.1-dev", learn=tmp_path) as enabled:
        tiny.call(pipe, steps=12)
        assert enabled.trace.cache_ratio == 0
        tiny.call(pipe, steps=12)
        assert enabled.trace.cache_ratio == pytest.approx(0.5)
    with cachepolicies.enable(pipe, "teacache", profile="flux.1-dev") as enabled:
        tiny.call(pipe, steps=12)
        assert enabled.policy.name == "teacache"
