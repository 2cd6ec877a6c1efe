"""SenCache's rule on tables of displacements, against the policy itself and by hand."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser
from cachepolicies.base.errors import InputError
from cachepolicies.planning.simulate import mean_evaluations, simulate, simulate_run, simulate_samples
from cachepolicies.policies import SenCache
from cachepolicies.profiles import load_profile
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.scores import Bound, Extrapolated, Score
from cachepolicies.substitutes.quadratic import Quadratic
from made_profiles import linear_profile
from steady_runs import Distance, steady


def test_by_hand():
    ts, table = steady(10)
    assert simulate(Distance(), [2.0] * 10, ts, table) == (0, 3, 6, 9)  # equal to the tolerance is within it
    assert simulate(Distance(), [1.9] * 10, ts, table) == (0, 2, 4, 6, 8)
    assert simulate(Distance(), [9.0] * 10, ts, table) == (0,)
    assert simulate(Distance(), [9.0] * 10, ts, table, max_reuse=4) == (0, 5)
    assert simulate(Distance(), [9.0] * 10, ts, table, max_reuse=0) == tuple(range(10))
    assert simulate(Distance(), [0.0] * 10, ts, table) == tuple(range(10))
    assert simulate(Distance(), [0, 9, 0, 9, 0, 9, 9, 9, 0, 9], ts, table) == (0, 2, 4, 8)
    assert simulate(Distance(), [1.0], (5.0,), np.zeros((1, 1))) == (0,)


def test_the_history_is_newest_first_and_no_longer_than_the_order_needs():
    ts, table = steady(8)
    score = Distance(order=2)
    assert simulate(score, [1.0] * 8, ts, table) == (0, 2, 4, 6)
    assert score.asked[0] == ((8.0,), 7.0, 1.0)
    assert score.asked[2] == ((6.0, 8.0), 5.0, 1.0)
    assert score.asked[-1] == ((2.0, 4.0, 6.0), 1.0, 1.0)


def test_a_score_that_is_not_a_number_never_reuses():
    class Nan(Distance):
        def at(self, refreshes, t, displacement):
            return math.nan

    ts, table = steady(4)
    assert simulate(Nan(), [1.0] * 4, ts, table) == (0, 1, 2, 3)


@given(seed=st.integers(0, 2**32 - 1), max_reuse=st.one_of(st.none(), st.integers(0, 5)), order=st.integers(0, 2))
def test_never_more_reuses_in_a_row_and_every_score_is_on_its_side(seed, max_reuse, order):
    rng = np.random.default_rng(seed)
    ts, _ = steady(20)
    position = rng.uniform(0, 1, 20).cumsum()
    table = np.abs(np.subtract.outer(position, position))
    tolerance = rng.uniform(0, 2, 20)
    done = simulate_run(Distance(order), tolerance.tolist(), ts, table, max_reuse)
    assert done.refreshes == simulate(Distance(order), tolerance.tolist(), ts, table, max_reuse)
    for step in range(1, 20):
        newest = max(r for r in done.refreshes if r < step)
        assert done.scores[step] == table[newest, step]
        allowed = max_reuse is None or step - newest <= max_reuse
        assert (step in done.refreshes) == (not allowed or done.scores[step] > tolerance[step])
        assert done.reuse_scores[step] == (0.0 if step in done.refreshes else done.scores[step])


@pytest.mark.parametrize(("epsilon", "max_reuse"), [(0.05, 3), (0.15, 6), (0.4, 2)])
def test_it_is_what_the_policy_does(epsilon, max_reuse):
    # A denoiser with a constant output: the trajectory does not depend on what is reused.
    num_steps, scheduler = 30, FlowEuler()
    ts = scheduler.timesteps(num_steps)
    profile = linear_profile(ts, alpha_x=0.7, alpha_t=2e-4, class_name="Still")

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.full_like(x, 0.5)

    model = Still()
    policy = SenCache(epsilon=epsilon, epsilon_start=0.02, start_fraction=0.3, max_reuse=max_reuse)
    denoiser = CachedDenoiser(model, policy, profile=profile)
    latents, sampling = [], scheduler.begin(num_steps)
    x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    with denoiser.run(timesteps=ts):
        while not sampling.finished:
            latents.append(x)
            given, t = sampling.model_input(x)
            x = sampling.advance(denoiser(given, t), x)
    evaluated = tuple(k for k, call in enumerate(denoiser.trace.records) if call.evaluated == (True,))
    flat = torch.cat(latents).double().flatten(1)
    table = ((flat[:, None] - flat[None]) ** 2).mean(-1).sqrt().numpy()
    tolerance = [0.02 if k < 9 else epsilon for k in range(num_steps)]
    assert simulate(Bound(profile), tolerance, ts, table, max_reuse) == evaluated
    assert 1 < len(evaluated) < num_steps


@frozen
class Asked(Score):
    """Another score, with every displacement that it was asked about."""

    name: ClassVar[str] = "asked"
    score: Score
    displacements: list[float] = field(factory=list)

    @property
    def order(self):
        return self.score.order

    def at(self, refreshes, t, displacement):
        self.displacements.append(displacement)
        return self.score.at(refreshes, t, displacement)


def test_samples_and_their_mean_ask_once_a_step():
    profile = load_profile("video-dit")
    assert profile.displacement is not None
    ts, table = profile.timesteps, profile.displacement.astype(np.float64)
    tolerance = [0.05] * len(ts)
    for score in (Bound(profile), Extrapolated(profile, Quadratic())):
        asked = Asked(score)
        runs = simulate_samples(asked, tolerance, ts, table, 4)
        assert len(asked.displacements) == profile.samples * (len(ts) - 1)
        assert {type(displacement) for displacement in asked.displacements} == {float}  # of numpy's, each step is slow
        assert runs == tuple(simulate(score, tolerance, ts, table[:, :, s], 4) for s in range(profile.samples))
        assert mean_evaluations(score, tolerance, ts, table, 4) == np.mean([len(r) for r in runs])


def test_bad_input_is_refused():
    ts, table = steady(5)
    with pytest.raises(InputError, match="4 tolerances for 5 timesteps"):
        simulate(Distance(), [1.0] * 4, ts, table)
    with pytest.raises(InputError, match=r"shape \(4, 5\), expected \(5, 5\)"):
        simulate(Distance(), [1.0] * 5, ts, table[:4])
    with pytest.raises(InputError, match=r"expected \(5, 5, samples\)"):
        simulate_samples(Distance(), [1.0] * 5, ts, table)
    with pytest.raises(InputError, match="at least one step"):
        simulate(Distance(), [], (), np.zeros((0, 0)))
