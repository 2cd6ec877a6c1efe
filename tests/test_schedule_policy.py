"""The policy `schedule`: the steps of a plan, on the run that the plan was made for and on no other."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import CachedDenoiser, EngineReason, NeedsError, PolicySettings, SettingsError, sample
from cachepolicies.contracts.step import Step
from cachepolicies.engine.trace import Trace
from cachepolicies.planning.io import save_plan
from cachepolicies.policies import Schedule
from cachepolicies.profiles.schema import SchedulerInfo
from counting import out_of_sight
from denoisers import SHAPE, Counted, mixture
from made_plans import plan_of
from made_profiles import linear_profile

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

TIMESTEPS = tuple(np.linspace(1000.0, 50.0, 20).tolist())
REFRESHES = (0, 1, 2, 5, 9, 14, 19)
FLOW = SchedulerInfo("flow-euler", "flow", {"shift": 1.0})


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))


def walk(denoiser, timesteps=TIMESTEPS, declared=None) -> Trace:
    x = noise()
    with denoiser.run(timesteps=timesteps if declared is None else declared) as run:
        for t in timesteps:
            x = x - 0.01 * denoiser(x, t)
    return run.trace


def evaluated(trace: Trace) -> tuple[int | None, ...]:
    assert all(len(set(record.evaluated)) == 1 for record in trace.records)
    return tuple(record.index for record in trace.records if record.evaluated[0])


@pytest.mark.parametrize("form", ["steps", "plan", "path", "spec"])
def test_the_steps_are_evaluated_and_no_others(form, tmp_path):
    path = save_plan(plan_of(TIMESTEPS, REFRESHES), tmp_path / "plan.json")
    policies: dict[str, Callable[[], str | PolicySettings]] = {
        "steps": lambda: Schedule(refreshes=REFRESHES, num_steps=20),
        "plan": lambda: Schedule(plan=plan_of(TIMESTEPS, REFRESHES)),
        "path": lambda: Schedule(plan=path),
        "spec": lambda: f"schedule:plan={path}",
    }
    model = Counted(mixture())
    denoiser = CachedDenoiser(model, policies[form]())
    trace = walk(denoiser)
    assert evaluated(trace) == REFRESHES
    assert model.calls == len(REFRESHES)
    assert denoiser.nfe == len(REFRESHES)
    assert trace.reasons() == {"scheduled reuse": 13 * 2, "scheduled evaluation": 7 * 2}


@settings(max_examples=50)
@given(st.sets(st.integers(1, 19)))
def test_any_set_of_steps(chosen):
    steps = (0, *sorted(chosen))
    denoiser = CachedDenoiser(mixture(), "schedule", refreshes=steps, num_steps=20)
    assert denoiser.policy.reuses == (len(steps) < 20)
    assert evaluated(walk(denoiser)) == steps


def test_every_step_is_the_bare_model_bit_for_bit():
    denoiser = CachedDenoiser(mixture(), "schedule", refreshes=range(20), num_steps=20)
    x = noise()
    both = [sample(d, "flow-euler", x, num_steps=20) for d in (denoiser, mixture())]
    assert torch.equal(*both)
    assert not denoiser.policy.reuses


def test_both_evaluations_of_a_heun_sampler_at_one_level_follow_its_step():
    model = Counted(mixture())
    denoiser = CachedDenoiser(model, Schedule(refreshes=(0, 1, 4, 5)), scheduler="karras-heun")
    sample(denoiser, "karras-heun", noise(), num_steps=10)
    by_step: dict[int | None, list[bool]] = {}
    for record in denoiser.trace.records:
        by_step.setdefault(record.index, []).append(record.evaluated[0])
    assert [len(calls) for calls in by_step.values()] == [1] + [2] * 9
    assert {step for step, calls in by_step.items() if all(calls)} == {0, 1, 4, 5}
    assert not any(any(calls) for step, calls in by_step.items() if step not in (0, 1, 4, 5))


def test_no_tensor_is_looked_at(monkeypatch):
    out_of_sight(monkeypatch)
    denoiser = CachedDenoiser(lambda x, t: x * 0.5, Schedule(refreshes=REFRESHES))

    def refuse(self):
        raise AssertionError("a tensor was read")

    x = noise()
    with denoiser.run(timesteps=TIMESTEPS):
        monkeypatch.setattr(Tensor, "tolist", refuse)
        monkeypatch.setattr(Tensor, "item", refuse)
        for t in TIMESTEPS:
            denoiser(x, t)
    monkeypatch.undo()
    assert denoiser.nfe == len(REFRESHES)


def test_what_is_not_finite_is_evaluated_again():
    """The engine's guard goes before the plan."""
    broken = {"at": TIMESTEPS[2]}

    def model(x, t):
        return x * (float("nan") if t == broken["at"] else 0.5)

    denoiser = CachedDenoiser(model, Schedule(refreshes=REFRESHES))
    x = noise()
    with denoiser.run(timesteps=TIMESTEPS) as run:
        for t in TIMESTEPS:
            denoiser(x, t)
    assert evaluated(run.trace) == (0, 1, 2, 3, 5, 9, 14, 19)
    assert run.trace.records[3].reason == (EngineReason.NON_FINITE_OUTPUT,) * 2


# -- other runs are refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        (TIMESTEPS[:-1], r"the plan has 20 steps, and the run has 19; .*epsilon='plan.json'"),
        ((*TIMESTEPS, 10.0), r"the plan has 20 steps, and the run has 21"),
        (tuple(t * 0.9 for t in TIMESTEPS), r"t = 1000 at step 0, and the run has t = 900 there"),
        ((*TIMESTEPS[:7], TIMESTEPS[7] + 1.0, *TIMESTEPS[8:]), r"at step 7"),
    ],
)
def test_a_run_the_plan_is_not_for(timesteps, message):
    model = Counted(mixture())
    denoiser = CachedDenoiser(model, Schedule(plan=plan_of(TIMESTEPS, REFRESHES)))
    with pytest.raises(SettingsError, match=message):
        walk(denoiser, timesteps)
    assert model.calls == 0


def test_timesteps_rounded_to_float32_are_the_plan_s():
    levels = torch.linspace(1000.0, 1.0, 20, dtype=torch.float64)
    denoiser = CachedDenoiser(mixture(), Schedule(plan=plan_of(levels.tolist(), REFRESHES)))
    assert evaluated(walk(denoiser, levels.float())) == REFRESHES


def test_an_announced_run_is_compared_as_it_comes():
    """In place, a context may tell the number of steps only: t is then compared at every call."""
    denoiser = CachedDenoiser(mixture(), Schedule(plan=plan_of(TIMESTEPS, REFRESHES)))
    policy = denoiser.policy
    with denoiser.run(timesteps=TIMESTEPS):
        denoiser(noise(), TIMESTEPS[0])
        request = denoiser._requests.latest
        assert request is not None
        assert request.run is not None
        info = request.run.info
    announced = evolve(info, timesteps=None, announced_steps=20)
    state = policy.start(announced)

    def at(index: int, t: float) -> Step:
        return Step(noise(), t, "", index, announced, lambda tensors: [tensor.tolist() for tensor in tensors])

    assert policy.decide(at(1, TIMESTEPS[1]), state).reuse == (False, False)
    assert policy.decide(at(3, TIMESTEPS[3]), state).reuse == (True, True)
    assert policy.decide(at(3, (TIMESTEPS[3] + TIMESTEPS[4]) / 2), state).reuse == (True, True)
    with pytest.raises(SettingsError, match="at step 3"):
        policy.decide(at(3, TIMESTEPS[3] + 5.0), state)
    with pytest.raises(SettingsError, match="20 steps, and the run has 19"):
        policy.start(evolve(announced, announced_steps=19))
    with pytest.raises(SettingsError, match="at step 0, and the run has t = 900"):
        policy.start(evolve(announced, first_t=900.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refreshes": (0, 25)}, r"refreshes has step 25, but the run has 20 steps only"),
        ({"refreshes": (0, 3), "num_steps": 30}, r"refreshes are for 30 steps, but the run has 20"),
    ],
)
def test_steps_the_run_does_not_have(settings, message):
    with pytest.raises(SettingsError, match=message):
        walk(CachedDenoiser(mixture(), "schedule", **settings))


def test_the_run_has_to_be_declared():
    denoiser = CachedDenoiser(mixture(), "schedule:refreshes=(0, 2)")
    with pytest.raises(NeedsError, match="needs the run length"):
        denoiser(noise(), 1000.0)


# -- what the plan was made for ----------------------------------------------------------------------------------------


def test_a_plan_for_another_substitute_is_refused():
    plan = plan_of(TIMESTEPS, REFRESHES, substitute="linear", scheduler=FLOW)
    with pytest.raises(SettingsError, match=r"made for the substitute 'linear', and Hold\(\) is in use"):
        CachedDenoiser(mixture(), Schedule(plan=plan))
    with pytest.raises(SettingsError, match="made for the substitute 'linear'"):
        CachedDenoiser(mixture(), Schedule(plan=plan), substitute="quadratic")
    denoiser = CachedDenoiser(mixture(), Schedule(plan=plan), substitute="linear", scheduler="flow-euler")
    assert evaluated(walk(denoiser)) == REFRESHES


def test_the_guard_does_not_make_another_substitute():
    plan = plan_of(TIMESTEPS, REFRESHES, substitute="linear", scheduler=FLOW)
    CachedDenoiser(mixture(), Schedule(plan=plan), substitute="linear:guard=7.0", scheduler="flow-euler")
    # sigma = t / 1000 on this schedule: the same weights
    CachedDenoiser(mixture(), Schedule(plan=plan), substitute="linear:time=t")


def test_the_time_of_the_substitute_does():
    plan = plan_of(TIMESTEPS[1:], (0, 4), substitute="linear:time=log-snr", scheduler=FLOW)
    with pytest.raises(SettingsError, match="is in use; give"):
        CachedDenoiser(mixture(), Schedule(plan=plan), substitute="linear:time=t")
    CachedDenoiser(mixture(), Schedule(plan=plan), substitute="linear:time=log-snr", scheduler="flow-euler")


def test_a_plan_for_another_class_of_model_is_refused():
    plan = plan_of(TIMESTEPS, REFRESHES, model_class="Other")
    with pytest.raises(SettingsError, match="made for a Other, and profile 'constant' is of a Counted"):
        CachedDenoiser(Counted(mixture()), Schedule(plan=plan), profile=linear_profile(TIMESTEPS))


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set exactly one of plan and refreshes, got plan=None, refreshes=None"),
        ({"plan": "p.json", "refreshes": (0,)}, "set exactly one of plan and refreshes"),
        ({"refreshes": ()}, "begins with step 0"),
        ({"refreshes": (1, 2)}, r"begins with step 0, .* got \(1, 2\)"),
        ({"refreshes": (0, 3, 2)}, "a rising sequence of steps, but 2 follows 3"),
        ({"refreshes": (0, 3, 3)}, "a rising sequence of steps, but 3 follows 3"),
        ({"refreshes": (0, 2.5)}, r"refreshes must be an integer >= 0, got 2\.5"),
        ({"refreshes": (0, True)}, "refreshes must be an integer >= 0, got True"),
        ({"refreshes": 0}, r"refreshes must be a sequence of integers >= 0, got 0 \(int\)"),
        ({"refreshes": "all"}, "refreshes must be a sequence of integers >= 0, got 'all'"),
        ({"refreshes": (0, 9), "num_steps": 9}, "refreshes has step 9, but num_steps is 9"),
        ({"refreshes": (0, 9), "num_steps": 0}, "num_steps must be an integer >= 1, got 0"),
        ({"plan": "p.json", "num_steps": 9}, "num_steps goes with refreshes"),
        ({"plan": 3}, r"plan must be a Plan or the path of one, got 3 \(int\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(mixture(), "schedule", **settings)


def test_a_missing_plan_is_said_at_set_up(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "no.json"))):
        CachedDenoiser(mixture(), f"schedule:plan={tmp_path / 'no.json'}")


def test_numbers_of_numpy_will_do():
    assert Schedule(refreshes=np.array([0, 4, 7])) == Schedule(refreshes=[0, 4, 7])
    assert "Plan(...)" in repr(Schedule(plan=plan_of(TIMESTEPS, REFRESHES)))
