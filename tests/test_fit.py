"""Fits of a calibration: the polynomial of TeaCache and the ratios of MagCache."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cachepolicies import Setup
from cachepolicies.base.errors import ProfileError, SettingsError
from cachepolicies.calibration.fit import fit_polynomial, magnitude_ratios, mean_norm_ratio
from cachepolicies.policies import MagCache, TeaCache
from cachepolicies.profiles.schema import ModelInfo, PublishedProfile


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    st.integers(0, 2**31),
    st.floats(0.01, 1.0),
)
def test_a_known_polynomial_is_recovered(coefficients, seed, width):
    degree = len(coefficients) - 1
    x = np.random.default_rng(seed).random((49, 8)) * width
    y = np.polyval(coefficients, x)
    shift = max(0.0, -y.min())  # a change is not negative
    coefficients = [*coefficients[:-1], coefficients[-1] + shift]
    y = np.maximum(np.polyval(coefficients, x), 0.0)
    assume(np.ptp(y) > 1e-6)
    fitted = fit_polynomial(x, y, degree)
    assert fitted.degree == degree
    assert fitted(x) == pytest.approx(y, abs=1e-9 * max(1.0, np.abs(y).max()))
    assert fitted.r_squared == pytest.approx(1.0, abs=1e-8)
    scale = width ** -np.arange(degree, -1, -1.0)  # how far a coefficient moves for the same values
    assert np.all(np.abs(np.array(fitted.coefficients) - coefficients) <= 1e-7 * scale * max(1.0, np.abs(y).max()))


def test_the_fit_is_least_squares():
    """No other polynomial of the degree is closer: the residuals are orthogonal to every power."""
    rng = np.random.default_rng(0)
    x, y = rng.random(200), rng.random(200)
    fitted = fit_polynomial(x, y, 3)
    for power in range(4):
        assert np.sum((y - fitted(x)) * x**power) == pytest.approx(0.0, abs=1e-9)
    assert fitted.coefficients == pytest.approx(tuple(np.polyfit(x, y, 3)), rel=1e-6)


@given(st.integers(0, 2**31))
def test_more_noise_never_explains_more(seed):
    rng = np.random.default_rng(seed)
    x = np.linspace(0.02, 0.4, 300)
    exact = 0.1 + 2 * x - x**2
    noise = rng.standard_normal(300)
    noise -= np.polynomial.Polynomial.fit(x, noise, 4)(x)  # only what no polynomial can take up
    r_squared = []
    for size in (0.0, 0.001, 0.005, 0.02):
        fitted = fit_polynomial(x, exact + size * noise)
        assert fitted.r_squared is not None
        r_squared.append(fitted.r_squared)
    assert r_squared[0] == pytest.approx(1.0, abs=1e-10)
    assert all(a > b for a, b in pairwise(r_squared))


def test_an_output_that_changes_evenly_has_no_variance_to_explain():
    fitted = fit_polynomial([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], 1)
    assert fitted.r_squared is None
    assert fitted(0.25) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "output", "degree", "error", "message"),
    [
        ([0.1, 0.1, 0.2, 0.2, 0.3], [1] * 5, 4, ProfileError, "needs at least 5 different .* and there are 3"),
        ([], [], 0, ProfileError, "there are 0"),
        ([[0.1, math.nan]], [[1, 1]], 1, ProfileError, r"signal_change is nan at \[0, 1\]: not finite"),
        ([0.1, 0.2], [1, math.inf], 1, ProfileError, r"output_change is inf at \[1\]: not finite"),
        ([0.1, -0.2], [1, 1], 1, ProfileError, r"signal_change is -0.2 at \[1\]: negative"),
        ([0.1, 0.2], [[1, 1]], 1, ProfileError, r"has shape \(2,\) and output_change \(1, 2\)"),
        ([[0.1], [0.2, 0.3]], [1, 1], 1, ProfileError, "signal_change is not a rectangular array"),
        ([0.1, 0.2], [1, 1], -1, SettingsError, "degree=-1; give an integer >= 0"),
        ([0.1, 0.2], [1, 1], 1.5, SettingsError, "degree=1.5"),
        ([0.1, 0.2], [1, 1], True, SettingsError, "degree=True"),
    ],
)
def test_bad_points(change, output, degree, error, message):
    with pytest.raises(error, match=message):
        fit_polynomial(change, output, degree)


def test_the_mean_of_the_ratios_is_not_the_ratio_of_the_means():
    assert mean_norm_ratio([[2.0, 9.0]], [[1.0, 9.0]]).tolist() == [1.5]
    before = np.random.default_rng(0).random((3, 7)) + 0.1
    assert mean_norm_ratio(before * [[2.0], [1.0], [0.5]], before) == pytest.approx([2.0, 1.0, 0.5])


def test_the_table_begins_with_one():
    table = magnitude_ratios([[0.9, 1.1], [0.8, 1.2]])
    assert table.tolist() == [[1.0, 1.0], [0.9, 1.1], [0.8, 1.2]]
    assert table.dtype == np.float64
    assert magnitude_ratios(np.ones((0, 2))).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_norm_ratio([[1.0]], [[0.0]]), "sample 0 is zero at token 0"),
        (lambda: mean_norm_ratio([[1.0]], [[1.0, 2.0]]), r"\(1, 1\) and norms_before \(1, 2\)"),
        (lambda: mean_norm_ratio([1.0], [1.0]), r"give \(samples, tokens\)"),
        (lambda: mean_norm_ratio([[math.nan]], [[1.0]]), r"norms is nan at \[0, 0\]"),
        (lambda: mean_norm_ratio(np.ones((1, 0)), np.ones((1, 0))), r"\(samples, tokens\)"),
        (lambda: magnitude_ratios([1.0]), r"ratios has shape \(1,\); give \(steps - 1, samples\)"),
        (lambda: magnitude_ratios([[1.0], [0.0]]), "the ratio of step 2 of sample 0 is 0"),
        (lambda: magnitude_ratios([[-1.0]]), r"ratios is -1.0 at \[0, 0\]: negative"),
        (lambda: magnitude_ratios([[math.inf]]), "not finite"),
    ],
)
def test_bad_ratios(call, message):
    with pytest.raises(ProfileError, match=message):
        call()


def test_the_policies_take_what_was_fitted():
    rng = np.random.default_rng(0)
    change = rng.random((9, 4))
    output = 0.5 * change + 0.01
    profile = PublishedProfile(
        name="p",
        model=ModelInfo("Net"),
        prediction_type=None,
        latent_shape=None,
        scheduler=None,
        timesteps=tuple(float(t) for t in range(10, 0, -1)),
        samples=4,
        polynomials={"modulated_input": fit_polynomial(change, output, 1)},
        tables={"magnitude_ratio": magnitude_ratios(0.5 + rng.random((9, 4)))},
    )
    teacache: Any = TeaCache(threshold=0.1).resolve(Setup(profile))
    assert teacache.policy.coefficients == pytest.approx((0.5, 0.01))
    magcache: Any = MagCache().resolve(Setup(profile))
    assert magcache.policy.lookup == "level"
