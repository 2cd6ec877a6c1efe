"""The optimal tolerance in closed form: its shape, its constant, and the schedule that uses it."""

from __future__ import annotations

import gc
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import CachedDenoiser, Needs, Setup
from cachepolicies.base.errors import InputError, NeedsError, ProfileError, SettingsError
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo
from cachepolicies.planning import continuous
from cachepolicies.planning.simulate import mean_evaluations
from cachepolicies.planning.weights import step_weights
from cachepolicies.policies import SenCache
from cachepolicies.profiles import Curve, load_profile
from cachepolicies.schedulers.karras_heun import KarrasHeun
from cachepolicies.schedulers.resolve import scheduler_of
from cachepolicies.scores import Bound, Displacement, Extrapolated, score_of
from cachepolicies.substitutes.hold import Hold
from cachepolicies.substitutes.linear import Linear
from cachepolicies.substitutes.quadratic import Quadratic
from cachepolicies.tolerances.optimal import Optimal
from denoisers import Counted, mixture
from made_profiles import trajectory_profile
from plain_loops import sampled
from steady_runs import Distance, steady

SHIPPED = load_profile("video-dit")
DISPLACEMENT = SHIPPED.tables["displacement"]
BOUND = Bound(SHIPPED)


def weights_of(profile, timesteps):
    """The measured ones where the profile has them; else some that fall as measured ones do."""
    if "weight" in profile.curves:
        return step_weights(profile, "measured", timesteps)
    return np.exp(np.linspace(3, 0, len(timesteps))) / len(timesteps)


# --- the shape


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0, 3.0])
def test_the_shape_is_the_formula(q):
    ts, table = steady(12)

    class Grows(Distance):
        growth = q

    rng = np.random.default_rng(0)
    w = rng.uniform(0.1, 5, 12)
    shape = continuous.optimal_shape(Grows(), w, ts, table)
    expected = w ** (-q / (q + 1))  # the score over one step is 1 everywhere
    assert shape / shape[0] == pytest.approx(expected / expected[0])
    assert np.log(shape).mean() == pytest.approx(0.0, abs=1e-12)


def test_for_hold_it_is_the_square_root_of_rate_over_weight():
    ts = SHIPPED.timesteps
    table = DISPLACEMENT.astype(np.float64).mean(axis=2)
    rates = continuous.one_step_scores(BOUND, ts, table)
    over = [BOUND.at((ts[k],), ts[k + 1], table[k, k + 1]) for k in range(49)]
    assert rates[0] == over[0]
    assert rates[49] == over[48]
    assert rates[20] == pytest.approx((over[19] + over[20]) / 2)
    w = np.linspace(9, 1, 50)
    shape = continuous.optimal_shape(BOUND, w, ts, table)
    assert shape / shape[7] == pytest.approx(np.sqrt(rates / w) / np.sqrt(rates[7] / w[7]))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.0, 3.0]))
def test_no_other_steady_distance_between_refreshes_is_better(seed, q):
    """The derivation: the distance l* that eps = K l*^q stands for minimises error plus price, step by step."""
    rng = np.random.default_rng(seed)
    K, w, price = rng.uniform(0.1, 3, 3)
    best = (price * (q + 1) / (q * w * K)) ** (1 / (q + 1))
    ls = best * np.linspace(0.3, 3, 271)
    cost = w * K * ls**q / (q + 1) + price / ls
    assert ls[np.argmin(cost)] == pytest.approx(best, rel=0.02)
    # and K best^q is c K^(1/(q+1)) w^(-q/(q+1)) with c free of K and w
    c = (price * (q + 1) / q) ** (q / (q + 1))
    assert K * best**q == pytest.approx(c * K ** (1 / (q + 1)) * w ** (-q / (q + 1)))


def test_where_a_weight_or_a_rate_is_zero_the_neighbours_stand_in():
    ts, table = steady(9)
    w = np.array([4.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    shape = continuous.optimal_shape(Distance(), w, ts, table)
    assert np.isfinite(shape).all()
    assert (shape > 0).all()
    filled = np.array([4.0, 2.0, 1, 1, 1, 1, 1, 1, 1])
    assert shape == pytest.approx(continuous.optimal_shape(Distance(), filled, ts, table))
    still = table.copy()
    still[3, 4] = still[4, 5] = 0.0
    shape = continuous.optimal_shape(Distance(), np.ones(9), ts, still)
    assert shape[4] == pytest.approx(math.sqrt(shape[3] * shape[5]))


def test_short_histories_take_the_first_full_one():
    profile = trajectory_profile()
    score, ts = Extrapolated(profile, Quadratic()), profile.timesteps
    table = Displacement(profile).table(ts).mean(axis=2)
    rates = continuous.one_step_scores(score, ts, table)
    assert (rates[:2] == 0).all()
    assert rates[2] == score.at(ts[2::-1], ts[3], table[2, 3])
    shape = continuous.optimal_shape(score, np.ones(len(ts)), ts, table)
    assert shape[0] == shape[1] == shape[2]


# --- the constant


@pytest.mark.parametrize("substitute", [Hold(), Linear(), Quadratic()], ids=["hold", "linear", "quadratic"])
@pytest.mark.parametrize("num_steps", [20, 30, 50, 100])
def test_budgets_are_met_within_one_evaluation(num_steps, substitute):
    assert SHIPPED.scheduler is not None
    scheduler = scheduler_of(SHIPPED.scheduler)
    assert scheduler is not None
    ts = scheduler.timesteps(num_steps)
    score = score_of("substitute", SHIPPED, substitute)
    assert num_steps != 50 or ts == SHIPPED.timesteps
    for w in (np.ones(num_steps), weights_of(SHIPPED, ts), step_weights(SHIPPED, "bound", ts)):
        for share in (0.2, 0.26, 0.34, 0.5, 0.62):
            nfe = round(share * num_steps)
            found = continuous.solve(SHIPPED, score, w, ts, nfe=nfe, max_reuse=8)
            assert abs(found.evaluations - nfe) <= 1
            again = mean_evaluations(score, found.curve.epsilon, ts, Displacement(SHIPPED).table(ts), 8)
            assert again == found.evaluations
            assert found.curve.t == ts


@given(st.floats(0.5, 3.0), st.floats(0.0, 3.0))
@settings(max_examples=10)
def test_evaluations_fall_as_the_constant_grows(scale, slope):
    ts = SHIPPED.timesteps
    table = DISPLACEMENT.astype(np.float64)
    shape = continuous.optimal_shape(BOUND, np.exp(np.linspace(slope, 0, 50)), ts, table.mean(axis=2))
    counts = [mean_evaluations(BOUND, c * scale * shape, ts, table, None) for c in np.geomspace(0.001, 3, 16)]
    assert counts[0] > counts[-1]
    # up to the staircase: a larger tolerance may move a refresh into the place of a worse one
    assert all(later <= before + 1 for before, later in pairwise(counts))


@pytest.mark.parametrize("nfe", [1, 13, 50, 17.5])
def test_budgets_at_the_ends_and_between(nfe):
    found = continuous.solve(SHIPPED, BOUND, np.ones(50), nfe=nfe)
    assert abs(found.evaluations - nfe) <= 0.5
    assert found.error >= 0
    assert (found.error == 0) == (nfe == 50)


@pytest.mark.parametrize("substitute", [Hold(), Linear()])
def test_targets_are_met_with_little_to_spare(substitute):
    w = weights_of(SHIPPED, SHIPPED.timesteps)
    score = score_of("substitute", SHIPPED, substitute)
    cheap = continuous.solve(SHIPPED, score, w, nfe=12)
    errors, counts = [], []
    for share in (0.02, 0.1, 0.3, 0.8):
        target = share * cheap.error
        found = continuous.solve(SHIPPED, score, w, target=target)
        assert 0.5 * target < found.error <= target
        errors.append(found.error)
        counts.append(found.evaluations)
    assert errors == sorted(errors)
    assert counts == sorted(counts, reverse=True)


def test_weights_pay():
    """For the same budget, the weighted tolerance predicts less weighted error than the unweighted one."""
    w = np.exp(np.linspace(4, 0, 50))
    plain = continuous.solve(SHIPPED, BOUND, np.ones(50), nfe=20)
    weighted = continuous.solve(SHIPPED, BOUND, w, nfe=20)
    table = Displacement(SHIPPED).table(SHIPPED.timesteps)
    costs = []
    for found in (plain, weighted):
        runs = [
            continuous.simulate_run(BOUND, found.curve.epsilon, SHIPPED.timesteps, table[:, :, s].tolist(), None)
            for s in range(SHIPPED.samples)
        ]
        costs.append(np.mean([w @ np.array(run.reuse_scores) for run in runs]))
    assert costs[1] < 0.8 * costs[0]
    assert weighted.error == pytest.approx(costs[1])


def test_single_steps():
    profile = trajectory_profile(steps=1, samples=2)
    with pytest.raises(ProfileError, match="no finite change at any of the 1 steps"):
        continuous.solve(profile, Bound(profile), [1.0], nfe=1)
    two = trajectory_profile(steps=2, samples=2)
    assert continuous.solve(two, Bound(two), [1.0, 1.0], nfe=1).evaluations == 1
    assert continuous.solve(two, Bound(two), [1.0, 1.0], nfe=2).evaluations == 2


def test_bad_input_is_refused():
    ones = np.ones(50)

    def solve(weights=ones, timesteps=None, profile=SHIPPED, **settings):
        return continuous.tolerance(profile, BOUND, weights, timesteps, **settings)

    with pytest.raises(SettingsError, match="nfe must be from 1 to 50"):
        solve(nfe=0.9)
    with pytest.raises(SettingsError, match="nfe must be from 1 to 50"):
        solve(nfe=51)
    with pytest.raises(SettingsError, match="nfe must be from 1 to 50"):
        solve(nfe=math.nan)
    with pytest.raises(SettingsError, match="nfe=5 and max_reuse=3 on 50 steps clash: at least 13"):
        solve(nfe=5, max_reuse=3)
    with pytest.raises(SettingsError, match="either nfe or target"):
        solve()
    with pytest.raises(SettingsError, match="either nfe or target"):
        solve(nfe=5, target=0.1)
    with pytest.raises(
        SettingsError, match=r"target=1e\+06 is out of reach: with the fewest .* max_reuse=3 allows, 13"
    ):
        solve(target=1e6, max_reuse=3)
    for target in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(SettingsError, match="target must be a finite number > 0"):
            solve(target=target)
    with pytest.raises(SettingsError, match="zero at every step"):
        solve(0 * ones, nfe=20)
    with pytest.raises(SettingsError, match="weight of step 7 is nan"):
        solve(np.where(np.arange(50) == 7, math.nan, 1.0), nfe=20)
    with pytest.raises(SettingsError, match="weight of step 7 is -1"):
        solve(np.where(np.arange(50) == 7, -1.0, 1.0), nfe=20)
    with pytest.raises(SettingsError, match=r"shape \(49,\), expected \(50,\)"):
        solve(ones[:49], nfe=20)
    with pytest.raises(InputError, match="strictly decreasing"):
        solve(ones[:2], (1.0, 2.0), nfe=1)
    with pytest.raises(NeedsError, match="'displacement'"):
        solve(profile=evolve(SHIPPED, tables={}), nfe=20)
    still = evolve(SHIPPED, tables={"displacement": 0 * DISPLACEMENT})
    frozen = Curve(SHIPPED.timesteps, np.zeros((50, 8)))
    score = Bound(evolve(SHIPPED, curves={"alpha_x": frozen, "alpha_t": frozen}))
    with pytest.raises(ProfileError, match="no finite change at any of the 50 steps"):
        continuous.tolerance(still, score, ones, nfe=20)


# --- the schedule


def run_of(profile, timesteps):
    return RunInfo(
        first_t=1000.0,
        timesteps=timesteps,
        layout=Layout(4),
        shape=(4, *profile.latent_shape),
        dtype=torch.float32,
        device=torch.device("cpu"),
        profile=profile,
    )


@pytest.mark.parametrize("substitute", ["hold", "linear", "quadratic"])
@pytest.mark.parametrize(("num_steps", "nfe"), [(50, 20), (30, 12)])
def test_a_run_with_other_samples_meets_the_budget_in_the_mean(mixture_profile, substitute, num_steps, nfe):
    policy = SenCache(epsilon=Optimal(nfe=nfe, weights="uniform"), max_reuse=8)
    denoiser = CachedDenoiser(Counted(mixture()), policy, profile=mixture_profile, substitute=substitute)
    counts = sampled(denoiser, num_steps, range(100, 116))
    assert abs(counts.mean() - nfe) <= 1.5, counts


def test_the_curve_is_that_of_solve_and_is_found_once(monkeypatch):
    calls = []
    original = continuous.tolerance

    def noting(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(continuous, "tolerance", noting)
    schedule, setup, ts = Optimal(target=0.5, weights="uniform"), Setup(SHIPPED, Hold()), SHIPPED.timesteps
    for _ in range(3):
        at = schedule.start(run_of(SHIPPED, ts), setup, BOUND, 5)
    schedule.start(run_of(SHIPPED, ts[::2]), setup, BOUND, 5)
    assert len(calls) == 2
    found = continuous.solve(SHIPPED, BOUND, np.ones(50), target=0.5, max_reuse=5)
    steps: list[Any] = [SimpleNamespace(t=t) for t in ts]
    assert [at(step) for step in steps] == list(found.curve.epsilon)


def test_the_schedule_needs_a_declared_run_and_valid_settings():
    setup = Setup(SHIPPED, Hold())
    with pytest.raises(NeedsError, match="declare the run"):
        Optimal(nfe=20).start(run_of(SHIPPED, None), setup, BOUND, 3)
    with pytest.raises(NeedsError, match="needs a profile"):
        Optimal(nfe=20).start(run_of(SHIPPED, SHIPPED.timesteps), Setup(None, Hold()), BOUND, 3)
    with pytest.raises(SettingsError, match="nfe=5 and max_reuse=3"):
        Optimal(nfe=5, weights="uniform").start(run_of(SHIPPED, SHIPPED.timesteps), setup, BOUND, 3)
    heun = Setup(SHIPPED, Hold(), KarrasHeun())
    with pytest.raises(SettingsError, match="makes 2"):
        Optimal(nfe=20, weights="uniform").start(run_of(SHIPPED, SHIPPED.timesteps), heun, BOUND, 3)
    unclear: list[dict[str, Any]] = [{}, {"nfe": 20, "target": 0.1}]
    for wrong in unclear:
        with pytest.raises(SettingsError, match="either nfe"):
            Optimal(**wrong)
    invalid: list[dict[str, Any]] = [
        {"nfe": 0.5}, {"nfe": -3}, {"target": 0.0}, {"nfe": math.nan}, {"nfe": 20, "weights": "random"},
    ]  # fmt: skip
    for wrong in invalid:
        with pytest.raises(SettingsError):
            Optimal(**wrong)
    assert Optimal(nfe=20).needs == Needs(curves=["weight"], tables=["displacement"], run_length=True)
    assert Optimal(target=0.1, weights="bound").needs.curves == {"alpha_x"}
    assert Optimal(nfe=20) == Optimal(nfe=20) != Optimal(nfe=21)


def test_nothing_is_kept_of_a_denoiser_that_is_gone():
    schedule, score = Optimal(nfe=20, weights="uniform"), Bound(SHIPPED)
    setup = Setup(SHIPPED, Hold())
    first = schedule.curve(SHIPPED.timesteps, setup, score, 3)
    assert schedule.curve(SHIPPED.timesteps, setup, score, 3) is first
    assert schedule.curve(SHIPPED.timesteps, setup, score, 4) is not first
    assert len(schedule._curves) == 1
    del score
    gc.collect()
    assert len(schedule._curves) == 0


@pytest.mark.parametrize("every", [1, 2])
def test_a_fraction_is_of_the_steps_of_the_run(every):
    setup, steps = Setup(SHIPPED, Hold()), SHIPPED.timesteps[::every]
    wanted = Optimal(nfe=0.5 * len(steps), weights="uniform").curve(steps, setup, BOUND, 8)
    found = Optimal(fraction=0.5, weights="uniform").curve(steps, setup, BOUND, 8)
    assert [found.at(t) for t in steps] == [wanted.at(t) for t in steps]
