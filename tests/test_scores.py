"""Scores: the paper's bound, its sharper form, and the calibrated error of extrapolations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cachepolicies import Substitute
from cachepolicies.base.errors import InputError, NeedsError, PolicyError, SettingsError, UnknownNameError
from cachepolicies.profiles import Curve, Profile, load_profile
from cachepolicies.scores import Bound, Correlated, Displacement, Extrapolated, Score, score_name, score_of
from cachepolicies.scores.growth import LEAST_SAMPLES, combination_rms, measure
from cachepolicies.substitutes.hold import Hold
from cachepolicies.substitutes.linear import Linear
from cachepolicies.substitutes.quadratic import Quadratic
from counting import calls_during
from made_profiles import distances, trajectory_profile


@pytest.fixture(scope="module")
def shipped() -> Profile:
    return load_profile("video-dit")


def with_rho(profile, rho):
    ts = profile.timesteps
    return evolve(profile, curves={**profile.curves, "rho": Curve(ts, np.full((len(ts), 1), rho))})


KNOWN = trajectory_profile()


# --- bound, correlated


@given(
    t_r=st.floats(1, 1000),
    t=st.floats(1, 1000),
    d=st.floats(0, 10),
    interpolation=st.sampled_from(["linear", "nearest"]),
)
def test_bound_is_the_papers_score_bit_for_bit(t_r, t, d, interpolation):
    profile = KNOWN
    a = profile.alpha_x.at(t_r, interpolation) * d
    b = profile.alpha_t.at(t_r, interpolation) * abs(t - t_r)
    assert Bound(profile, interpolation).at((t_r, 1001.0), t, d) == a + b


@given(t_r=st.floats(1, 1000), t=st.floats(1, 1000), d=st.floats(0, 10), rho=st.floats(-1, 1))
def test_correlated_lies_between_the_difference_and_the_bound(t_r, t, d, rho):
    profile = KNOWN
    bound = Bound(profile).at((t_r,), t, d)
    a, b = profile.alpha_x.at(t_r, "linear") * d, profile.alpha_t.at(t_r, "linear") * abs(t - t_r)
    score = Correlated(with_rho(profile, rho)).at((t_r,), t, d)
    assert score == pytest.approx(math.sqrt(max(0.0, a * a + b * b + 2 * rho * a * b)), rel=1e-6, abs=1e-7)
    assert abs(a - b) * (1 - 1e-12) - 1e-150 <= score <= bound * (1 + 1e-12)  # squares below 1e-300 vanish


def test_correlated_at_the_ends_of_rho():
    profile = trajectory_profile()
    bound = Bound(profile).at((900.0,), 800.0, 0.3)
    assert Correlated(with_rho(profile, 1.0)).at((900.0,), 800.0, 0.3) == pytest.approx(bound, rel=1e-12)
    balanced = profile.alpha_t.at(900.0, "linear") * 100.0 / profile.alpha_x.at(900.0, "linear")
    assert Correlated(with_rho(profile, -1.0)).at((900.0,), 800.0, balanced) == pytest.approx(0.0, abs=1e-12)


# --- displacement


def test_displacement_is_exact_on_the_grid_and_interpolates_speed_between(shipped):
    moved = Displacement(shipped)
    table, ts = shipped.displacement, shipped.timesteps
    assert np.array_equal(moved.table(ts), table.astype(np.float64))
    mean = table.astype(np.float64).mean(axis=2)
    for i, j in [(0, 1), (3, 40), (49, 0), (20, 20)]:
        assert moved.at(ts[i], ts[j]) == pytest.approx(mean[i, j], rel=1e-12)
        assert moved.per_sample(ts[i], ts[j]) == pytest.approx(table[i, j], rel=1e-6)
    fine = tuple(np.linspace(ts[0], ts[-1], 131))
    between = moved.table(fine)
    for i, j in [(0, 130), (17, 18), (64, 3), (5, 5)]:
        assert between[i, j].mean() == pytest.approx(moved.at(fine[i], fine[j]), rel=1e-12)
    assert between == pytest.approx(between.swapaxes(0, 1))
    assert not between[np.arange(131), np.arange(131)].any()


def test_displacement_is_exact_everywhere_where_the_speed_is_linear_in_t():
    # x = (t + t^2) v: the secant speed 1 + t_a + t_b is bilinear, beside the diagonal's filling
    steps = 30
    ts = np.linspace(1, 0.1, steps)
    path = (ts + ts**2)[:, None, None] * np.ones((1, 2, 3))
    profile = trajectory_profile(
        steps, 2, timesteps=tuple(ts), curves={}, tables={"displacement": distances(path)}, latent_shape=(3,)
    )
    moved = Displacement(profile)
    for a, b in [(0.95, 0.2), (0.5, 0.123), (0.77, 0.5)]:
        assert moved.at(a, b) == pytest.approx(abs((a + a * a) - (b + b * b)), rel=1e-12)
    near = moved.at(0.5, 0.499)
    assert near == pytest.approx((1 + 0.999) * 0.001, rel=0.03)
    assert moved.at(1.5, 0.2) == pytest.approx(2.2 * 1.3)  # beyond the ends: the speed of the end, 1 + 1 + 0.2


def test_displacement_refuses_what_is_not_finite():
    with pytest.raises(InputError, match="not all finite"):
        Displacement(trajectory_profile()).table((1.0, math.nan))


# --- extrapolated


@given(st.integers(0, 2**32 - 1))
def test_distances_tell_the_size_of_any_combination_with_sum_zero(seed):
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((6, 3, 11))
    weights = rng.standard_normal((1, 4))
    weights -= weights.mean()
    steps = rng.permutation(6)[None, :4]
    direct = np.sqrt((np.einsum("i,isd->sd", weights[0], outputs[steps[0]]) ** 2).mean(axis=-1))
    assert combination_rms(distances(outputs), steps, weights)[0] == pytest.approx(direct, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("substitute", "order"), [(Hold(), 0), (Linear(), 1), (Quadratic(), 2)])
def test_on_a_smooth_run_the_law_is_the_textbooks(substitute, order):
    profile = trajectory_profile(steps=120, samples=1)
    law = measure(profile, substitute, order)
    assert law.exponent == pytest.approx(1.0, abs=0.05)
    rng = np.random.default_rng(0)
    basis, other = rng.standard_normal((1, 16)), rng.standard_normal((1, 16))
    s, p = 0.5, order + 1
    sine = np.sin(2 * s + p * np.pi / 2) * 2**p
    derivative = math.sqrt(((sine * basis + (-1) ** p * math.exp(-s) * other) ** 2).mean())
    exact = measure(profile, substitute, order, exponent=1.0)
    # the derivative lies between the refreshes, which are a few steps back
    assert exact.kappa(500.0) == pytest.approx(derivative / 1000**p, rel=0.1 * p)


@pytest.mark.parametrize("substitute", [Linear(), Quadratic()])
def test_extrapolated_predicts_the_measured_error_on_a_smooth_run(substitute):
    profile = trajectory_profile(steps=60)
    score = Extrapolated(profile, substitute)
    ts, order = profile.timesteps, substitute.order
    moved = Displacement(profile)
    for k in (20, 33, 50):
        for gap in (2, 4):
            refreshes = [k - 1 - i * gap for i in range(order + 1)]
            levels = [ts[r] for r in refreshes]
            weights = np.array([[1.0, *(-c for c in substitute.coefficients(ts[k], levels))]])
            truth = combination_rms(profile.change, np.array([[k, *refreshes]]), weights).mean()
            expected = moved.at(levels[0], ts[k])
            assert score.at(levels, ts[k], expected) == pytest.approx(truth, rel=0.35)
            further = 1.5 ** score.laws[order].elasticity
            assert score.at(levels, ts[k], 1.5 * expected) == pytest.approx(further * score.at(levels, ts[k], expected))


def test_extrapolated_with_a_short_history_is_the_lower_order():
    profile = trajectory_profile()
    first, second = Extrapolated(profile, Linear()), Extrapolated(profile, Quadratic())
    ts, d = profile.timesteps, 0.1
    assert second.at(ts[5:3:-1], ts[7], d) == pytest.approx(first.at(ts[5:3:-1], ts[7], d), rel=1e-9)
    alone = first.at((ts[5],), ts[7], d)
    middle, gap = (ts[5] + ts[7]) / 2, ts[5] - ts[7]
    ratio = d / Displacement(profile).at(ts[5], ts[7])
    law = first.laws[0]
    assert alone == pytest.approx(law.kappa(middle) * gap**law.exponent * ratio**law.elasticity, rel=1e-9)
    assert first.at((ts[5], ts[5]), ts[7], d) == alone  # the same refresh twice is one
    assert first.at((ts[5], ts[4]), ts[5], 0.0) == 0.0
    assert (first.order, second.order) == (1, 2)
    assert second.growth == pytest.approx(3 * second.laws[2].exponent)


@settings(max_examples=30, deadline=None)
@given(
    power=st.floats(-0.5, 1.5),
    sizes=st.lists(st.floats(0.3, 3.0), min_size=LEAST_SAMPLES, max_size=6, unique=True),
    substitute=st.sampled_from([Linear(), Quadratic()]),
)
def test_the_score_follows_the_displacement_as_the_errors_of_the_samples_did(power, sizes, substitute):
    """Sample s moves ``a_s`` times as far and errs ``a_s ** power`` times as much."""
    sizes = np.array(sizes)
    if any(np.log(np.delete(sizes, k)).std() < 0.05 for k in range(len(sizes))):
        return
    rng = np.random.default_rng(0)
    path, other = rng.standard_normal((2, 1, 16))

    def outputs(s):
        smooth = np.sin(2.0 * s)[:, None, None] * path + np.exp(-s)[:, None, None] * other
        return smooth * sizes[:, None] ** power

    profile = trajectory_profile(samples=len(sizes), path=outputs)
    ts = profile.timesteps
    latents = np.array(ts)[:, None, None] / 1000 * sizes[:, None] * path
    profile = evolve(profile, tables={"change": profile.change, "displacement": distances(latents)})
    score = Extrapolated(profile, substitute)
    expected = min(1.0, max(0.0, power))
    assert [law.elasticity for law in score.laws] == pytest.approx([expected] * (substitute.order + 1), abs=1e-6)
    refreshes, mean = ts[10:5:-2], Displacement(profile).at(ts[10], ts[12])
    alike = score.at(refreshes, ts[12], mean)
    assert score.at(refreshes, ts[12], 2.0 * mean) == pytest.approx(2.0**expected * alike, rel=1e-5)


def test_without_samples_that_differ_the_displacement_counts_for_nothing():
    same, two = trajectory_profile(samples=1), trajectory_profile(samples=LEAST_SAMPLES - 1)
    alike = trajectory_profile(
        samples=4, tables={name: np.repeat(table, 4, axis=2) for name, table in same.tables.items()}
    )
    for profile in (same, two, alike):
        assert [law.elasticity for law in Extrapolated(profile, Quadratic()).laws] == [0.0] * 3


def scattered(seed, samples, power, spread):
    """Tables of samples that move ``a_s`` times as far and err ``a_s ** power * chance_s`` times as much."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(0.08 * rng.standard_normal(samples))
    factors = sizes**power * np.exp(spread * rng.standard_normal(samples))
    known = trajectory_profile(samples=1)
    tables = {"change": known.change * factors, "displacement": known.displacement * sizes}
    return trajectory_profile(samples=samples, tables=tables)


@pytest.mark.parametrize("samples", [4, 8])
def test_chance_is_seldom_taken_for_an_elasticity(samples):
    """Errors that have nothing to do with the displacement, with the spreads of the image model's."""
    found = [measure(scattered(seed, samples, 0.0, 0.16), Linear(), 1).elasticity for seed in range(60)]
    assert np.mean(np.array(found) > 0.3) < 0.25
    assert np.median(found) == 0.0


def test_an_elasticity_that_many_samples_show_is_found():
    found = [measure(scattered(seed, 40, 0.8, 0.02), Linear(), 1).elasticity for seed in range(10)]
    assert all(0.6 < value < 0.9 for value in found)


def test_a_sample_whose_output_does_not_change_leaves_the_others_their_elasticity():
    sizes = np.array([0.5, 0.8, 1.0, 1.7])
    known = trajectory_profile(samples=1)
    tables = {"change": known.change * sizes**0.5, "displacement": known.displacement * sizes}
    still = {name: table.copy() for name, table in tables.items()}
    still["change"] = np.concatenate([still["change"], 0.0 * known.change], axis=2)
    still["displacement"] = np.concatenate([still["displacement"], known.displacement], axis=2)
    for chosen in (tables, still):
        profile = trajectory_profile(samples=chosen["change"].shape[2], tables=chosen)
        assert measure(profile, Linear(), 1).elasticity == pytest.approx(0.5, abs=1e-6)


def test_a_displacement_that_is_no_number_has_no_score(shipped):
    score = Extrapolated(shipped, Quadratic())
    for displacement in (math.nan, math.inf):
        assert math.isnan(score.at(shipped.timesteps[10:7:-1], shipped.timesteps[11], displacement))


def test_where_time_is_infinite_the_order_is_lower():
    class Late(Linear):
        def time(self, t):
            return -math.inf if t >= 1000 else -math.log(t)

    profile = trajectory_profile()
    score = Extrapolated(profile, Late())
    ts = profile.timesteps
    assert math.isfinite(score.at((ts[3], ts[0]), ts[5], 0.1))
    assert score.at((ts[3], ts[0]), ts[5], 0.1) == score.at((ts[3],), ts[5], 0.1)
    assert score.at((ts[0],), ts[2], 0.1) > 0


def test_an_output_that_never_changes_has_the_score_zero():
    profile = trajectory_profile(path=lambda s: np.ones((len(s), 3, 16)))
    score = Extrapolated(profile, Linear())
    assert score.at(profile.timesteps[3:1:-1], profile.timesteps[6], 0.2) == 0.0


def test_an_output_that_is_extrapolated_exactly_has_a_tiny_score():
    profile = trajectory_profile(path=lambda s: s[:, None, None] * np.ones((1, 3, 16)))
    ts = profile.timesteps
    score, bound = Extrapolated(profile, Linear()), measure(profile, Linear(), 0).kappa(500.0)
    assert score.at((ts[4], ts[2]), ts[6], 0.05) < 1e-6 * bound * (ts[4] - ts[6])


@pytest.mark.parametrize(("substitute", "worst"), [(Linear(time="t"), 0.35), (Quadratic(time="t"), 0.6)])
def test_on_the_shipped_profile_scores_predict_measured_errors(shipped, substitute, worst):
    score = Extrapolated(shipped, substitute)
    ts, order, moved = shipped.timesteps, substitute.order, Displacement(shipped)
    logs = []
    for gap in range(2, 7):
        for newest in range(gap * order, len(ts) - 1):
            for k in range(newest + 1, min(newest + gap, len(ts))):
                refreshes = [newest - i * gap for i in range(order + 1)]
                levels = [ts[r] for r in refreshes]
                weights = np.array([[1.0, *(-c for c in substitute.coefficients(ts[k], levels))]])
                truth = combination_rms(shipped.change, np.array([[k, *refreshes]]), weights).mean()
                logs.append(math.log(score.at(levels, ts[k], moved.at(levels[0], ts[k])) / truth))
    assert len(logs) > 400
    assert math.sqrt(np.mean(np.square(logs))) < worst
    # what the exponent is there for
    textbook = Extrapolated(shipped, substitute, exponent=1.0)
    assert textbook.growth == order + 1 > score.growth


@pytest.mark.parametrize(
    "make", [Bound, lambda profile: Extrapolated(profile, Quadratic())], ids=["bound", "quadratic"]
)
def test_a_score_only_looks_up_what_was_prepared(make):
    """A few calls, as many for a long profile as for a short one; no table and no sample is read."""
    counts = []
    for steps in (20, 80):
        profile = trajectory_profile(steps=steps)
        score, levels = make(profile), profile.timesteps[10:7:-1]
        expected = score.at(levels, 300.0, 0.1)
        profile.tables.clear()
        for curve in profile.curves.values():
            object.__setattr__(curve, "values", None)
        counts.append(calls_during(lambda s=score, at=levels: s.at(at, 300.0, 0.1)))
        assert score.at(levels, 300.0, 0.1) == expected
    assert counts[0] == counts[1]
    assert counts[0].total() <= 40


# --- which score


def test_score_of_picks_by_order(shipped):
    class Foreign(Substitute):
        name = "foreign"
        history = 1

        def predict(self, context, history):
            return history[0].output

    assert isinstance(score_of("substitute", shipped, Hold()), Bound)
    assert isinstance(score_of("substitute", shipped, Foreign()), Bound)
    assert isinstance(score_of("substitute", shipped, Linear()), Extrapolated)
    assert isinstance(score_of("bound", shipped, Linear()), Bound)
    correlated = score_of("correlated", with_rho(trajectory_profile(), 0.5), Hold(), "nearest")
    with pytest.raises(SettingsError, match="not that of the extrapolation 'linear'"):
        score_of("correlated", with_rho(trajectory_profile(), 0.5), Linear())
    assert [score_name(s) for s in (Hold(), Foreign(), Linear())] == ["bound", "bound", "extrapolation"]
    assert isinstance(correlated, Correlated)
    assert correlated.interpolation == "nearest"
    for score in (Bound(shipped), correlated, Extrapolated(shipped, Linear())):
        assert isinstance(score, Score)
        assert score.growth > 0
        for name in (*score.needs.curves, *score.needs.tables):
            assert name in {*score.profile.curves, *score.profile.tables}


def test_bad_input_is_refused(shipped):
    with pytest.raises(UnknownNameError, match="did you mean 'bound'"):
        score_of("bond", shipped, Hold())
    with pytest.raises(NeedsError, match="needs a profile"):
        score_of("bound", None, Hold())
    with pytest.raises(NeedsError, match="'rho'"):
        Correlated(trajectory_profile())
    with pytest.raises(NeedsError, match="'change'"):
        Extrapolated(evolve(shipped, tables={"displacement": shipped.displacement}), Linear())
    with pytest.raises(NeedsError, match="'displacement'"):
        Extrapolated(evolve(shipped, tables={"change": shipped.change}), Linear())
    with pytest.raises(SettingsError, match="interpolation"):
        Bound(shipped, "cubic")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="exponent"):
        Extrapolated(shipped, Linear(), exponent=0.0)
    with pytest.raises(NeedsError, match="3 steps; an extrapolation of order 2 is calibrated on 4"):
        Extrapolated(trajectory_profile(steps=3), Quadratic())


def test_weights_that_do_not_sum_to_one_are_refused(shipped):
    class Damped(Linear):
        def coefficients(self, t, refreshes):
            return tuple(0.9 * c for c in super().coefficients(t, refreshes))

    with pytest.raises(PolicyError, match=r"sum to 0\.9"):
        Extrapolated(shipped, Damped())
