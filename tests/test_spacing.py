"""Steps where nothing was measured: as many as asked for, and where a multistep sampler needs them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies.assembly.spacing import spaced_steps
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
    levels = FlowEuler(shift=shift).timesteps(steps)
    for scheduler in (FlowEuler(shift=shift), unipc(shift), None):
        chosen = spaced_steps(levels, count, scheduler)
        assert len(chosen) == count
        assert list(chosen) == sorted(set(chosen))
        assert chosen[0] == 0
        assert chosen[-1] < steps


def test_a_multistep_sampler_evaluates_its_last_step_and_is_dense_early() -> None:
    scheduler = unipc()
    chosen = spaced_steps(scheduler.timesteps(50), 10, scheduler)
    assert chosen[-1] == 49
    assert sum(k < 25 for k in chosen) > 6


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


@pytest.mark.parametrize("scheduler", [None, FlowEuler(), DDIM(), KarrasEuler()])
def test_others_are_evenly_spaced(scheduler: Scheduler | None) -> None:
    assert spaced_steps(range(10), 4, scheduler) == (0, 2, 5, 7)


def test_timesteps_in_another_unit_are_counted() -> None:
    assert spaced_steps([5000.0, 4000.0, 3000.0, 2000.0], 2, unipc()) == (0, 3)
