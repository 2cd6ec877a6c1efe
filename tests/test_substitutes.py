"""Substitutes by themselves: their order of accuracy, their axes, short histories, and bad settings."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from attrs import evolve
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cachepolicies import Context, NeedsError, Refresh, SettingsError, Setup, Substitute, as_scheduler
from cachepolicies.registry.load import load_plugins
from cachepolicies.schedulers import DDIM, DDPM, FlowEuler, KarrasEuler, KarrasHeun
from cachepolicies.substitutes import Extrapolation, Hermite, Hold, Linear, Quadratic, Taylor
from cachepolicies.substitutes._extrapolation import Extrapolating, derivatives
from cachepolicies.substitutes._path import OutputPath
from cachepolicies.substitutes.hermite import hermite_polynomials
from made_profiles import linear_profile

FLAT = 1 / math.sqrt(2)


def in_t(kind, **settings):
    return kind(time="t", **settings)


def on(substitute, scheduler, profile=None):
    """The substitute resolved on a scheduler and a profile."""
    return substitute.resolve(Setup(profile, scheduler=scheduler))


def smooth(tau: float) -> np.ndarray:
    """A vector-valued trajectory that no polynomial is."""
    return np.array([math.sin(2 * tau), math.exp(tau), math.cos(3 * tau + 1), 1 / (2 + tau)])


def predicted(substitute, now, points, values=smooth) -> np.ndarray:
    weights = substitute.coefficients(now, points)
    return sum(w * values(p) for w, p in zip(weights, points, strict=False))


def slope(substitute, offsets, ahead: float = 1.2) -> float:
    """The order in h of the error at ``ahead * h``, from refreshes at ``-offsets * h``: fitted over halvings of h."""
    sizes = [0.05 / 2**k for k in range(6)]
    errors = []
    for h in sizes:
        points = [0.3 - offset * h for offset in offsets]
        error = predicted(substitute, 0.3 + ahead * h, points) - smooth(0.3 + ahead * h)
        errors.append(np.sqrt(np.mean(error**2)))
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# -- order ----------------------------------------------------------------------------------------------------------

EVEN = (0.0, 1.0, 2.0, 3.0)
UNEVEN = (0.0, 0.7, 2.6, 3.1)


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("substitute", "order"),
    [
        (Hold(), 0),
        (in_t(Linear), 1),
        (in_t(Quadratic), 2),
        (in_t(Taylor, order=0), 0),
        (in_t(Taylor, order=1), 1),
        (in_t(Taylor, order=2), 2),
        (in_t(Taylor, order=3), 3),
        (in_t(Taylor, order=1, differences="taylorseer"), 1),
        # d_1 belongs to the middle of the last distance: no order beyond the first is gained by further terms
        (in_t(Taylor, order=2, differences="taylorseer"), 1),
        (in_t(Taylor, order=3, differences="taylorseer"), 1),
        # 2 scale^2 is not 1: the slope itself is wrong
        (in_t(Hermite, order=1), 0),
        (in_t(Hermite, order=2), 0),
        (in_t(Hermite, order=2, scale=0.6), 0),
        (in_t(Hermite, order=3, differences="newton"), 0),
        (in_t(Hermite, order=1, scale=FLAT), 1),
        (in_t(Hermite, order=2, scale=FLAT), 1),
        (in_t(Hermite, order=2, scale=FLAT, differences="newton"), 1),
    ],
    ids=repr,
)
def test_the_error_shrinks_as_the_order_says(substitute, order, offsets):
    assert slope(substitute, offsets) == pytest.approx(order + 1, abs=0.3)


@pytest.mark.parametrize("offsets", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_a_short_history_has_the_lower_order(offsets):
    for substitute in (in_t(Quadratic), in_t(Taylor, order=2)):
        for known in (1, 2, 3):
            assert slope(substitute, offsets[:known]) == pytest.approx(known, abs=0.25)


points_of = st.lists(st.floats(0.0, 1000.0), min_size=4, max_size=4, unique=True).map(lambda p: sorted(p))


def apart(points, least: float = 5.0) -> bool:
    return all(b - a >= least for a, b in pairwise(points))


@given(points_of, st.floats(0.0, 300.0), st.lists(st.floats(-2.0, 2.0), min_size=4, max_size=4))
def test_polynomials_of_its_degree_are_continued_exactly(points, ahead, coefficients):
    assume(apart(points))
    now = points[0] - ahead
    for substitute in (in_t(Linear), in_t(Quadratic), *(in_t(Taylor, order=p) for p in range(4))):
        degree = substitute.order

        def polynomial(tau, degree=degree):
            return np.polyval(coefficients[: degree + 1], (tau - 500.0) / 500.0)

        weights = substitute.coefficients(now, points)
        scale = sum(abs(w) for w in weights) * max(1.0, *(abs(polynomial(p)) for p in points))
        assert abs(predicted(substitute, now, points, polynomial) - polynomial(now)) <= 1e-11 * scale


@given(points_of, st.floats(0.0, 300.0), st.integers(1, 4))
def test_taylor_is_linear_and_quadratic(points, ahead, known):
    assume(apart(points))
    now, points = points[0] - ahead, points[:known]
    for order, twin in ((1, Linear), (2, Quadratic)):
        ours = in_t(Taylor, order=order).coefficients(now, points)
        assert ours == pytest.approx(in_t(twin).coefficients(now, points), rel=1e-9, abs=1e-9)


def test_weights_do_not_depend_on_the_unit_of_the_axis():
    for substitute in (in_t(Linear), in_t(Quadratic), in_t(Taylor, order=3), in_t(Hermite, order=3)):
        here = substitute.coefficients(300.0, (400.0, 520.0, 700.0, 760.0))
        assert here == pytest.approx(substitute.coefficients(0.3, (0.4, 0.52, 0.7, 0.76)), rel=1e-9)
        assert here == pytest.approx(substitute.coefficients(-300.0, (-400.0, -520.0, -700.0, -760.0)), rel=1e-9)


def test_newton_differences_are_the_derivatives_of_a_polynomial():
    points = (0.4, 0.9, 1.1, 2.0)
    polynomial = np.polynomial.Polynomial([0.3, -1.0, 2.0, 0.7])
    values = np.array([polynomial(p) for p in points])
    for i, row in enumerate(derivatives(points, "newton")):
        assert np.dot(row, values) == pytest.approx(polynomial.deriv(i)(points[0]) if i else values[0], rel=1e-9)


# -- the authors' recursions -----------------------------------------------------------------------------------------


class Recursion:
    """The factors that the authors' code keeps of one module, refreshed step by step; x is counted in steps."""

    def __init__(self, order):
        self.order, self.factors, self.steps = order, [], []

    def refresh(self, step, feature):
        self.steps.append(step)
        fresh = [feature]
        if len(self.steps) > 1:
            distance = self.steps[-1] - self.steps[-2]
            for before in self.factors[: self.order]:
                fresh.append((fresh[-1] - before) / distance)
        self.factors = fresh

    def taylor(self, step):
        x = step - self.steps[-1]
        return sum(f * x**i / math.factorial(i) for i, f in enumerate(self.factors))

    def hermite(self, step, scale):
        x = scale * (step - self.steps[-1])
        basis = [np.polynomial.hermite.hermval(x, [0.0] * i + [1.0]) for i in range(len(self.factors))]
        terms = zip(self.factors, basis, strict=True)
        return sum(f * scale**i * b / math.factorial(i) for i, (f, b) in enumerate(terms))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("refreshes", [(0, 1, 2, 5, 10, 15, 20), (0, 3, 4, 9, 11)], ids=["interval", "uneven"])
def test_the_recursions_of_taylorseer_and_hicache(refreshes, order):
    """In steps, and with as much history as the recursion has behind it: their numbers."""
    theirs, levels = Recursion(order), {step: 1000.0 - 20.0 * step for step in range(25)}
    taylor = in_t(Taylor, order=order, differences="taylorseer")
    hermite = in_t(Hermite, order=order, scale=0.6, unit=20.0)
    for k, step in enumerate(refreshes):
        theirs.refresh(step, smooth(step / 25))
        known = [levels[s] for s in refreshes[: k + 1][::-1]]
        for ahead in (1, 2, 4):
            now = levels[step + ahead]

            def values(t):
                return smooth((1000.0 - t) / 20.0 / 25)

            np.testing.assert_allclose(predicted(taylor, now, known, values), theirs.taylor(step + ahead), rtol=1e-9)
            np.testing.assert_allclose(
                predicted(hermite, now, known, values), theirs.hermite(step + ahead, 0.6), rtol=1e-9
            )


def test_hermite_polynomials():
    for x in (-1.3, 0.0, 0.4, 2.0):
        for count in range(1, 6):
            theirs = [np.polynomial.hermite.hermval(x, [0.0] * i + [1.0]) for i in range(count)]
            assert hermite_polynomials(x, count) == pytest.approx(theirs)


# -- axes -----------------------------------------------------------------------------------------------------------

VP = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("scheduler", "time"),
    [
        (FlowEuler(), "sigma"),
        (DDIM(), "sigma"),
        (DDPM(), "sigma"),
        (KarrasEuler(), "sigma"),
        (KarrasHeun(), "sigma"),
        (DDIMScheduler(**VP), "sigma"),
        (UniPCMultistepScheduler(**FLOW), "sigma"),
        (DPMSolverMultistepScheduler(**FLOW), "sigma"),
        (UniPCMultistepScheduler(**VP), "log-snr"),
        (DPMSolverMultistepScheduler(**VP), "log-snr"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_samplers_own_time(scheduler, time):
    scheduler = as_scheduler(scheduler)
    assert scheduler.time == time
    level = torch.tensor([500.0 if scheduler.family != "edm" else 3.0], dtype=torch.float64)
    alpha, sigma = scheduler.alpha(level).item(), scheduler.sigma(level).item()
    expected = {"flow": sigma, "vp": sigma / alpha, "edm": sigma / alpha}[scheduler.family]
    if time == "log-snr":
        expected = math.log(alpha**2 / sigma**2)
    substitute = on(Linear(), scheduler)
    assert substitute.time(level.item()) == pytest.approx(expected, rel=1e-12)
    assert on(Linear(time=time), scheduler).time(level.item()) == substitute.time(level.item())
    assert on(Linear(time="t"), scheduler).time(level.item()) == level.item()


def test_the_axis_is_in_the_weights():
    """Linear in sigma / alpha, to a DDIM step between two refreshes in t."""
    scheduler = DDIM()
    substitute = Linear(scheduler=scheduler)
    tau = [(scheduler.sigma(torch.tensor(t)) / scheduler.alpha(torch.tensor(t))).item() for t in (400.0, 500.0, 700.0)]
    ratio = (tau[0] - tau[1]) / (tau[1] - tau[2])
    assert substitute.coefficients(400.0, (500.0, 700.0)) == pytest.approx((1 + ratio, -ratio))
    assert substitute.coefficients(400.0, (500.0, 700.0)) != pytest.approx((1.5, -0.5), rel=0.05)


def test_in_flow_matching_sigma_is_t_up_to_a_factor():
    weights = Quadratic(time="t").coefficients(300.0, (400.0, 500.0, 800.0))
    assert Quadratic(scheduler="flow-euler").coefficients(300.0, (400.0, 500.0, 800.0)) == pytest.approx(weights)


def test_a_scheduler_of_its_own_stays_and_resolving_again_changes_nothing():
    own = Linear(scheduler="ddim")
    assert on(own, FlowEuler()) is own
    assert on(own, None) is own
    made = on(Linear(), FlowEuler())
    assert made.scheduler == FlowEuler()
    assert on(made, DDIM()) is made
    assert Linear().scheduler is None


@pytest.mark.parametrize("axis", ["sigma", "log-snr"])
def test_an_axis_that_needs_a_scheduler_says_so(axis):
    with pytest.raises(NeedsError, match=rf"'linear' with time='{axis}' needs the noise schedule.*time='t'"):
        on(Linear(time=axis), None)
    with pytest.raises(NeedsError, match="no scheduler is known"):
        Linear(time=axis).coefficients(1.0, (2.0, 3.0))


def test_without_a_scheduler_t_is_used_and_noted():
    assert on(Linear(), None).time(412.5) == 412.5
    assert "extrapolates in t" in on(Linear(), None).notes[0]
    for silent in (Linear(time="t"), Linear(scheduler="ddim"), Taylor(order=0)):
        assert silent.notes == ()


def test_a_point_at_infinity_lowers_the_order():
    """log-SNR at sigma = 0 and at sigma = 1 of flow matching."""
    for order, substitute in ((1, Linear), (2, Quadratic), (2, Hermite), (3, lambda **s: Taylor(order=3, **s))):
        made = substitute(time="log-snr", scheduler=FlowEuler())
        assert made.order == order
        assert made.time(1000.0) == -math.inf
        assert made.time(0.0) == math.inf
        # nothing to extrapolate from, or to
        assert made.coefficients(900.0, (1000.0,)) == (1.0,)
        assert made.coefficients(0.0, (100.0, 200.0, 300.0)) == (1.0,)
        assert made.coefficients(800.0, (1000.0, 900.0)) == (1.0,)
        # the oldest is passed over
        assert made.coefficients(800.0, (900.0, 1000.0)) == (1.0,)
        weights = made.coefficients(800.0, (900.0, 950.0, 1000.0))
        assert weights == made.coefficients(800.0, (900.0, 950.0))
        assert all(math.isfinite(w) for w in weights)


def test_sigma_over_alpha_without_data_is_at_infinity():
    scheduler = as_scheduler(DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"))
    made = Linear(time="sigma", scheduler=scheduler)
    assert scheduler.alpha(torch.tensor(999.0)).item() == 0
    assert made.time(999.0) == math.inf
    assert made.coefficients(960.0, (980.0, 999.0)) == (1.0,)


def test_of_two_refreshes_at_one_point_the_older_is_passed_over():
    quadratic = in_t(Quadratic)
    assert in_t(Linear).coefficients(300.0, (400.0, 400.0)) == (1.0,)
    assert quadratic.coefficients(300.0, (400.0, 400.0, 400.0)) == (1.0,)
    line = in_t(Linear).coefficients(300.0, (400.0, 600.0))
    assert quadratic.coefficients(300.0, (400.0, 400.0, 600.0)) == pytest.approx((line[0], 0.0, line[1]))
    assert quadratic.coefficients(300.0, (400.0, 600.0, 600.0)) == pytest.approx(line)
    # rounded apart by float32
    assert in_t(Linear).coefficients(300.0, (400.0, float(np.nextafter(np.float32(400), np.float32(500))))) == (1.0,)
    assert in_t(Linear).coefficients(1e-4, (2e-4, 3e-4)) == pytest.approx((2.0, -1.0))


def test_at_a_refresh_it_is_the_refresh():
    for substitute in (in_t(Linear), in_t(Quadratic), in_t(Taylor, order=3)):
        assert substitute.coefficients(400.0, (400.0, 500.0, 700.0, 710.0))[0] == pytest.approx(1.0)
        assert substitute.coefficients(400.0, (400.0, 500.0, 700.0, 710.0))[1:] == pytest.approx(
            [0.0] * substitute.order
        )


# -- tensors --------------------------------------------------------------------------------------------------------


def refreshes(levels, rows=2, dtype=torch.float32, values=None):
    """Refreshes of `smooth` in every row, newest first; ``levels`` holds one list for each row."""
    found = []
    for place in range(max(len(row) for row in levels)):
        t = [row[place] if place < len(row) else math.nan for row in levels]
        filled = [place < len(row) for row in levels]
        output = torch.stack(
            [torch.tensor(smooth(v / 1000) if ok else [math.inf] * 4) for v, ok in zip(t, filled, strict=True)]
        ).to(dtype)
        found.append(Refresh(output, t, filled, [place if ok else -1 for ok in filled]))
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", [[[400.0, 500.0, 700.0]] * 2, [[400.0, 500.0, 700.0], [450.0, 480.0]]])
def test_the_prediction_is_the_weighted_sum_in_the_dtype_of_the_outputs(dtype, levels):
    history = refreshes(levels, dtype=dtype)
    for substitute in (in_t(Linear), in_t(Quadratic), in_t(Taylor, order=3), in_t(Hermite)):
        made = substitute.predict(Context(300.0), history[: substitute.history])
        assert made.output.dtype == dtype
        for row, known in enumerate(levels):
            weights = substitute.coefficients(300.0, known)
            exact = sum(w * h.output[row].double() for w, h in zip(weights, history, strict=False))
            # float32 arithmetic on what is stored: only the last rounding is that of the dtype
            eps = max(torch.finfo(dtype).eps, 1e-15)
            torch.testing.assert_close(made.output[row].double(), exact, rtol=2 * eps, atol=20 * min(eps, 1.2e-7))
            assert made.order[row] == min(substitute.order, len(known) - 1)


def test_a_row_with_its_own_history_does_not_touch_the_others():
    alone = [[400.0, 500.0, 700.0], [450.0], [410.0, 640.0], []]
    together = in_t(Quadratic).predict(Context(300.0), refreshes(alone))
    for row, known in enumerate(alone[:3]):
        single = in_t(Quadratic).predict(Context(300.0), refreshes([known]))
        assert single.order == (together.order[row],)
        torch.testing.assert_close(single.output[0], together.output[row], rtol=1e-6, atol=1e-6)
        assert torch.isfinite(together.output[row]).all()
    assert together.order[:3] == (2, 0, 1)
    assert torch.equal(together.output[1], refreshes(alone)[0].output[1])  # a held row, bit for bit


def test_a_held_output_is_the_remembered_tensor():
    history = refreshes([[400.0], [400.0]])
    for substitute in (in_t(Linear), in_t(Taylor, order=0), in_t(Hermite, order=0)):
        assert substitute.predict(Context(300.0), history).output is history[0].output


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hold", "linear", "quadratic", "taylor", "hermite"])
def test_every_built_in_one_follows_the_contracts(name):
    made = load_plugins().substitutes.create(name)
    assert isinstance(made, Substitute)
    assert isinstance(made, Extrapolation)
    assert made.name == name
    assert made.history == made.order + 1
    assert made.coefficients(300.0, (400.0,)) == (1.0,)
    assert (made.signals, made.wants_input, made.wants_branches) == (frozenset(), False, False)
    assert (made.guard, made.notes) == (None, ()) if name == "hold" else made.guard == 2.0 and made.notes
    assert name == "hold" or isinstance(made, Extrapolating)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("linear:time=log-snr,guard=1.5", Linear(time="log-snr", guard=1.5)),
        ("linear:guard=None", Linear(guard=None)),
        ("quadratic:scheduler=flow-euler", Quadratic(scheduler=FlowEuler())),
        ("taylor:order=3,differences=taylorseer", Taylor(order=3, differences="taylorseer")),
        ("hermite:order=1,scale=0.7,unit=0.02", Hermite(order=1, scale=0.7, unit=0.02)),
    ],
)
def test_specs(spec, expected):
    assert load_plugins().substitutes.create(spec) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Linear, {"time": "snr"}, r"time must be one of.*'snr'"),
        (Linear, {"guard": 0.5}, "guard must be a number >= 1, or None for no guard, got 0.5"),
        (Linear, {"guard": math.nan}, "guard must be a finite number"),
        (Quadratic, {"scheduler": 3}, "scheduler is 3"),
        (Taylor, {"order": -1}, "order must be an integer >= 0, got -1"),
        (Taylor, {"order": 1.0}, "order must be an integer >= 0"),
        (Taylor, {"differences": "lagrange"}, "differences must be one of"),
        (Hermite, {"scale": 0.0}, "scale must be a finite number > 0"),
        (Hermite, {"unit": -1.0}, "unit must be a finite number > 0"),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(SettingsError, match=message):
        kind(**settings)


def test_numpy_numbers_are_settings_too():
    made = Taylor(order=np.int64(2), guard=np.float64(3.0))
    assert (type(made.order), type(made.guard)) == (int, float)


# -- along the path of the output ---------------------------------------------------------------------------------


def _with_path(change, timesteps=(4.0, 3.0, 2.0, 1.0)):
    tables = {} if change is None else {"change": change}
    samples = 1 if change is None else change.shape[2]
    return evolve(linear_profile(timesteps), samples=samples, curves={}, tables=tables)


def test_the_path_is_the_sum_of_the_mean_changes_over_a_step():
    steps = np.array([[1.0, 3.0], [4.0, 6.0], [10.0, 10.0]])
    length = np.vstack([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    profile = _with_path(np.abs(length[:, None, :] - length[None, :, :]))
    path = OutputPath.of(profile)
    assert [path.at(t) for t in (4.0, 3.0, 2.0, 1.0)] == [0.0, 2.0, 7.0, 17.0]
    assert [path.at(t) for t in (3.5, 4.5, 0.5)] == [1.0, -1.0, 22.0]  # between, and with the slope of each end


@settings(max_examples=30)
@given(st.lists(st.floats(0.1, 5.0), min_size=7, max_size=7), st.integers(0, 2**31))
def test_along_its_path_an_output_on_a_straight_line_is_reproduced(steps, seed):
    """However unevenly it moves: the speed along the line is what the path has measured."""
    length = np.concatenate([[0.0], np.cumsum(steps)])
    timesteps = tuple(float(8 - k) for k in range(8))
    profile = _with_path(np.abs(length[:, None] - length[None, :])[..., None], timesteps)
    linear = on(Linear(time="path"), None, profile)
    direction = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    outputs = {t: direction * far for t, far in zip(timesteps, length, strict=True)}
    for now, newest, before in ((5.0, 6.0, 8.0), (1.0, 4.0, 5.0), (4.0, 5.0, 6.0)):
        a, b = linear.coefficients(now, (newest, before))
        torch.testing.assert_close(a * outputs[newest] + b * outputs[before], outputs[now])


def test_a_path_needs_a_profile():
    with pytest.raises(NeedsError, match="time='path' needs the output's path, and there is no profile"):
        on(Linear(time="path"), None, None)
    with pytest.raises(NeedsError, match="needs the table 'change'"):
        on(Linear(time="path"), None, _with_path(None))


@pytest.mark.parametrize(
    "substitute",
    [Linear(time="t"), Quadratic(time="t"), Taylor(order=3, time="t"), Hermite(time="t"), Hermite(time="t", unit=0.5)],
)
@pytest.mark.parametrize("remembered", [1, 2, 3, 5])
def test_many_coefficients_are_the_single_ones(substitute, remembered):
    rng = np.random.default_rng(remembered)
    levels = -np.sort(-rng.uniform(1, 9, (40, remembered + 1)), axis=1)
    levels[::7, -1] = levels[::7, max(0, remembered - 1)]  # some refreshes lie at one point
    found = substitute.many_coefficients(levels[:, -1] - 1, levels[:, :remembered])
    assert found.shape == (40, remembered)
    for row, many in zip(levels, found, strict=True):
        one = substitute.coefficients(row[-1] - 1, row[:remembered].tolist())
        assert many[: len(one)] == pytest.approx(one, rel=1e-12, abs=1e-12)
        assert not many[len(one) :].any()


def test_many_coefficients_where_an_axis_ends():
    """log-SNR has no finite point at t = 1000, where the data's factor is 0."""
    linear = on(Linear(time="log-snr"), FlowEuler())
    found = linear.many_coefficients(np.array([800.0, 700.0]), np.array([[900.0, 1000.0], [800.0, 900.0]]))
    assert found[0].tolist() == [1.0, 0.0]
    assert found[1] == pytest.approx(linear.coefficients(700.0, (800.0, 900.0)))


# -- the number of the step -----------------------------------------------------------------------------------------

OF_ANY_LENGTH: tuple[float, ...] = (1000.0, 940.0, 700.0, 650.0, 300.0, 20.0)
"""A run whose steps are of any length."""


def kept(levels, values) -> list[Refresh]:
    return [Refresh(torch.tensor([[value]]), [t], [True], [0]) for t, value in zip(levels, values, strict=True)]


@pytest.mark.parametrize("kind", [Linear(time="index"), Quadratic(time="index"), Taylor(order=2, time="index")])
@pytest.mark.parametrize("timesteps", [OF_ANY_LENGTH, OF_ANY_LENGTH[::-1]])
def test_in_steps_a_polynomial_in_their_number_is_continued(kind, timesteps):
    """Whatever the noise levels are; another run has another axis."""
    for shift in (0.0, 7.0):
        run = tuple(t + shift for t in timesteps)
        history = kept([run[k] for k in (3, 1, 0)], [2.0 + 3.0 * k + k**2 * (kind.order > 1) for k in (3, 1, 0)])
        found = kind.predict(Context(run[5], timesteps=run, index=5), history)
        assert found.output.item() == pytest.approx(2.0 + 3.0 * 5 + 25 * (kind.order > 1), rel=1e-6)
        assert found.order == (kind.order,)


def test_in_steps_repeated_quotients_are_those_of_the_papers():
    """TaylorSeer's second quotient divides by the last distance, in steps."""
    f: dict[int, float] = {5: 1.5, 3: -0.5, 0: 4.0}
    first, before = (f[5] - f[3]) / 2, (f[3] - f[0]) / 3
    wanted = f[5] + 2 * first + 2**2 / 2 * (first - before) / 2
    run: tuple[float, ...] = (*OF_ANY_LENGTH, 10.0, 0.0)
    kind = Taylor(order=2, differences="taylorseer", time="index")
    found = kind.predict(Context(run[7], timesteps=run, index=7), kept([run[k] for k in f], f.values()))
    assert found.output.item() == pytest.approx(wanted, rel=1e-6)


def test_in_steps_even_steps_are_those_in_t_also_where_they_correct():
    run = tuple(1000.0 - 100.0 * k for k in range(10))
    history = kept([run[k] for k in (6, 3, 2)], [0.3, 2.0, -1.0])
    context = Context(run[7], timesteps=run, index=7)
    for kind in (Linear, Quadratic):
        in_steps, in_level = (
            kind(time=time, correct=0.8, scheduler=FlowEuler(), steps="euler") for time in ("index", "t")
        )
        one, other = in_steps.predict(context, history), in_level.predict(context, history)
        torch.testing.assert_close(one.output, other.output)
        torch.testing.assert_close(in_steps.correction(context, history), in_level.correction(context, history))


def test_in_steps_a_run_of_one_step_has_nothing_to_count():
    found = Linear(time="index").predict(Context(500.0, timesteps=(500.0,), index=0), kept([500.0], [3.0]))
    assert found.output.item() == 3.0


def test_in_steps_there_is_nothing_without_a_run():
    """Also after many runs, whose axes are not kept for ever."""
    kind = Linear(time="index")
    for shift in range(40):
        run = tuple(t + shift for t in OF_ANY_LENGTH)
        found = kind.predict(Context(run[2], timesteps=run), kept([run[1], run[0]], [1.0, 0.0]))
        assert found.output.item() == pytest.approx(2.0)
    assert len(kind._runs) <= 16
    with pytest.raises(NeedsError, match=r"'linear' with time='index' counts the steps of a run.*declare it"):
        kind.predict(Context(500.0), kept([600.0, 700.0], [1.0, 0.0]))
    with pytest.raises(NeedsError, match="counts the steps of a run"):
        kind.coefficients(500.0, (600.0, 700.0))
