"""Steps where nothing was measured: as many as asked for, and where a multistep sampler needs them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, sample
from cachepolicies.assembly.spacing import is_multistep, spaced_steps
from cachepolicies.contracts.adapter import Clock
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.schedulers.karras_euler import KarrasEuler


def unipc(shift: float = 1.0) -> Scheduler:
    return from_class_name(
        "UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


@settings(deadline=None)
@given(st.integers(1, 200), st.data(), st.sampled_from([1.0, 3.0, 12.0]))
def test_as_many_as_asked_for_and_both_ends(steps: int, data: st.DataObject, shift: float) -> None:
    count = data.draw(st.integers(1, steps))
    chosen = spaced_steps(FlowEuler(shift=shift).timesteps(steps), count, unipc(shift))
    assert len(chosen) == count
    assert list(chosen) == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] == (steps - 1 if count > 1 else 0)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_multistep_sampler_is_known_by_what_an_output_does(name: str) -> None:
    assert is_multistep(from_class_name(name, prediction_type="flow_prediction", use_flow_sigmas=True))
    assert is_multistep(from_class_name(name, prediction_type="epsilon"))


@pytest.mark.parametrize("scheduler", [FlowEuler(), FlowEuler(shift=5.0), DDIM(), KarrasEuler()])
def test_a_sampler_of_single_steps_is_not_one(scheduler: Scheduler) -> None:
    assert not is_multistep(scheduler)


def test_a_multistep_sampler_evaluates_its_last_step_and_is_dense_early() -> None:
    scheduler = unipc()
    chosen = spaced_steps(scheduler.timesteps(50), 10, scheduler)
    assert chosen[-1] == 49
    assert sum(k < 10 for k in chosen) > 2


def test_a_shift_leaves_the_noise_levels_where_they_are() -> None:
    levels = []
    for scheduler in (unipc(), unipc(5.0)):
        run = scheduler.timesteps(50)
        levels.append([run[k] for k in spaced_steps(run, 9, scheduler)][1:-1])
    longest = max(a - b for a, b in pairwise(unipc(5.0).timesteps(50)))
    assert levels[0] == pytest.approx(levels[1], abs=longest)


def test_a_variance_preserving_one_counts_every_step_the_same() -> None:
    scheduler = from_class_name("UniPCMultistepScheduler", prediction_type="epsilon")
    assert spaced_steps(scheduler.timesteps(10), 4, scheduler) == (0, 3, 6, 9)


@pytest.mark.parametrize(("clock", "of"), [("unit", lambda t: t / 1000), ("reversed-unit", lambda t: 1 - t / 1000)])
def test_how_the_model_is_called_changes_nothing(clock: Clock, of: Callable[[float], float]) -> None:
    run = unipc().timesteps(50)
    assert spaced_steps([of(t) for t in run], 10, unipc(), clock) == spaced_steps(run, 10, unipc())


def test_timesteps_in_another_unit_are_counted() -> None:
    assert spaced_steps([5000.0, 4000.0, 3000.0, 2000.0], 2, unipc()) == (0, 3)


@pytest.mark.parametrize(("scheduler", "how"), [(FlowEuler(), "evenly spaced"), (unipc(), "multistep sampler")])
def test_the_trace_says_which_it_was(scheduler: Scheduler, how: str) -> None:
    denoiser = CachedDenoiser(lambda x, t: 0.5 * x, budget=10, scheduler=scheduler, learn=False)
    sample(denoiser, scheduler, torch.ones(1, 4), num_steps=20)
    assert how in str(denoiser)
    assert denoiser.nfe == 10
