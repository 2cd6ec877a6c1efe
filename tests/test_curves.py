"""Piecewise-linear curves on plain tuples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies.base.curves import PiecewiseLinear, locate, segment

NUMBERS = st.integers(-(10**7), 10**7).map(lambda n: n / 64)  # exact, so that near points cannot tie by rounding


@st.composite
def curves(draw):
    points = tuple(sorted(draw(st.lists(NUMBERS, min_size=1, max_size=9, unique=True))))
    return PiecewiseLinear(points, tuple(draw(st.lists(NUMBERS, min_size=len(points), max_size=len(points)))))


@given(curves(), NUMBERS)
def test_a_curve_is_numpys_interpolation(curve, x):
    size = max(map(abs, curve.values))
    assert curve.at(x) == pytest.approx(np.interp(x, curve.points, curve.values), rel=1e-6, abs=1e-9 * size)


@given(curves())
def test_a_point_has_its_own_value_without_rounding(curve):
    assert [curve.at(x) for x in curve.points] == list(curve.values)
    assert [curve.nearest(x) for x in curve.points] == list(curve.values)
    assert [locate(curve.points, x) for x in curve.points] == [(k, 0.0) for k in range(len(curve.points))]


@given(curves(), NUMBERS)
def test_the_nearest_point(curve, x):
    distances = [abs(x - point) for point in curve.points]
    last = max(k for k, distance in enumerate(distances) if distance == min(distances))
    assert curve.nearest(x) == curve.values[last]


@given(curves(), NUMBERS)
def test_beyond_the_ends_is_the_end(curve, x):
    before, share = locate(curve.points, x)
    assert 0.0 <= share < 1.0
    if not curve.points[0] < x < curve.points[-1]:
        assert share == 0.0
        assert before == (0 if x <= curve.points[0] else len(curve.points) - 1)


@given(curves().filter(lambda curve: len(curve.points) > 1), NUMBERS)
def test_a_segment_is_one_of_those_between_the_points(curve, x):
    before = segment(curve.points, x)
    assert 0 <= before <= len(curve.points) - 2
    assert before == 0 or curve.points[before] <= x
    assert before == len(curve.points) - 2 or x < curve.points[before + 1]
