"""The Gaussian mixture's closed forms, against autograd, against Bayes' rule on a grid, and against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.reference.gaussian_mixture import (
    AnalyticSchedule,
    CosineVP,
    CustomSchedule,
    FlowMatching,
    GaussianMixtureDenoiser,
    LinearBetaVP,
)

SHAPE = (2, 3)
SCHEDULES: list[AnalyticSchedule] = [
    FlowMatching(),
    FlowMatching(horizon=1000.0),
    CosineVP(),
    CosineVP(horizon=1000.0),
    LinearBetaVP(),
    LinearBetaVP(horizon=1000.0),
]
PREDICTIONS: list[PredictionType] = ["velocity", "noise", "x0", "v"]


def rms(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(dim=1).sqrt()


def mixture(
    components: int = 3,
    per_dimension: bool = True,
    schedule: AnalyticSchedule | None = None,
    prediction: PredictionType = "velocity",
    seed: int = 0,
    spread: float = 1.0,
    shape: tuple[int, ...] = SHAPE,
) -> GaussianMixtureDenoiser:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    return GaussianMixtureDenoiser(
        means=spread * (2 * draw(components, *shape) - 1),
        variances=0.05 + (draw(components, *shape) if per_dimension else draw(components)),
        weights=0.2 + draw(components),
        schedule=schedule or FlowMatching(),
        prediction=prediction,
    )


def points(denoiser: GaussianMixtureDenoiser, fractions: list[float], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noised data at the given fractions of the horizon."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor(fractions, dtype=torch.float64) * denoiser.schedule.horizon
    at = denoiser.schedule.coefficients(t.reshape(-1, *[1] * len(denoiser.shape)))
    data = denoiser.sample(len(fractions), generator)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    return at.alpha * data + at.sigma * noise, t


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedule_derivatives_match_autograd(schedule: AnalyticSchedule) -> None:
    t = torch.linspace(0.05, 1.0, 7, dtype=torch.float64) * schedule.horizon
    at = schedule.coefficients(t)
    for value, rate in (("alpha", "alpha_rate"), ("sigma", "sigma_rate")):
        tangent = torch.func.jvp(lambda t, v=value: getattr(schedule.coefficients(t), v), (t,), (torch.ones_like(t),))[
            1
        ]
        torch.testing.assert_close(getattr(at, rate), tangent, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("schedule", [CosineVP(), LinearBetaVP()], ids=str)
def test_vp_preserves_variance(schedule: AnalyticSchedule) -> None:
    at = schedule.coefficients(torch.linspace(0.0, 1.0, 11, dtype=torch.float64))
    torch.testing.assert_close(at.alpha.square() + at.sigma.square(), torch.ones(11, dtype=torch.float64))


def test_linear_beta_is_the_limit_of_the_discrete_schedule() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    discrete = (1.0 - betas).cumprod(0).sqrt()
    t = torch.arange(1, 1001, dtype=torch.float64)
    continuous = LinearBetaVP(horizon=1000.0).coefficients(t).alpha
    assert (continuous - discrete).abs().max() < 2e-3


def test_custom_schedule_equals_the_built_in_one() -> None:
    custom = CustomSchedule(horizon=1.0, alpha=lambda t: 1 - t, sigma=lambda t: t)
    ours, theirs = mixture(schedule=custom), mixture(schedule=FlowMatching())
    x, t = points(ours, [0.2, 0.9])
    torch.testing.assert_close(ours(x, t), theirs(x, t))
    torch.testing.assert_close(ours.time_derivative(x, t), theirs.time_derivative(x, t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("per_dimension", [True, False])
def test_derivatives_match_autograd(
    schedule: AnalyticSchedule, prediction: PredictionType, per_dimension: bool
) -> None:
    f = mixture(schedule=schedule, prediction=prediction, per_dimension=per_dimension)
    x, t = points(f, [0.03, 0.3, 0.7, 1.0])
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    jacobian, product, rate = f.jacobian(x, t), f.jvp(x, t, dx), f.time_derivative(x, t)
    d = math.prod(SHAPE)
    for i in range(len(x)):
        in_x = torch.func.jacrev(lambda x, i=i: f(x[None], t[i])[0])(x[i]).reshape(d, d)
        in_t = torch.func.jacfwd(lambda t, i=i: f(x[i : i + 1], t)[0])(t[i])
        torch.testing.assert_close(jacobian[i], in_x, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(product[i].flatten(), in_x @ dx[i].flatten(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(rate[i], in_t, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_predictions_are_consistent(schedule: AnalyticSchedule) -> None:
    f = {name: mixture(schedule=schedule, prediction=name) for name in PREDICTIONS}
    x, t = points(f["x0"], [0.02, 0.5, 0.98])
    at = schedule.coefficients(t[:, None, None])
    data, noise = f["x0"](x, t), f["noise"](x, t)
    torch.testing.assert_close(at.alpha * data + at.sigma * noise, x)
    torch.testing.assert_close(f["velocity"](x, t), noise - data)
    torch.testing.assert_close(f["v"](x, t), at.alpha * noise - at.sigma * data)


def test_one_component_is_the_linear_regression() -> None:
    f = mixture(components=1, prediction="x0", schedule=CosineVP())
    x, t = points(f, [0.25, 0.75])
    for i in range(2):
        a, s = math.cos(math.pi * t[i] / 2), math.sin(math.pi * t[i] / 2)
        # least squares of x0 on x: the mean plus covariance over variance times the deviation
        slope = a * f.variances[0] / (a**2 * f.variances[0] + s**2)
        torch.testing.assert_close(f(x, t)[i], f.means[0] + slope * (x[i] - a * f.means[0]))
    assert torch.equal(f.jacobian(x[:1], 0.3), f.jacobian(x[1:], 0.3))


@pytest.mark.parametrize("schedule", [FlowMatching(), CosineVP(), LinearBetaVP()], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoiser_is_the_posterior_mean_by_quadrature(schedule: AnalyticSchedule, prediction: PredictionType) -> None:
    f = mixture(schedule=schedule, prediction=prediction, shape=(1,), spread=2.0)
    data = torch.linspace(-12.0, 12.0, 40001, dtype=torch.float64)
    prior = sum(
        w * torch.exp(-0.5 * (data - m) ** 2 / v) / v.sqrt()
        for w, m, v in zip(f.weights, f.means[:, 0], f.variances[:, 0], strict=True)
    )
    for time in (0.2, 0.5, 0.8):
        at = schedule.coefficients(torch.tensor(time, dtype=torch.float64))
        for x in (-1.5, 0.1, 2.0):
            noise = (x - at.alpha * data) / at.sigma
            density = prior * torch.exp(-0.5 * noise**2)
            target = {
                "velocity": noise - data,
                "noise": noise,
                "x0": data,
                "v": at.alpha * noise - at.sigma * data,
            }[prediction]
            expected = (density * target).sum() / density.sum()
            got = f(torch.tensor([[x]], dtype=torch.float64), time)[0, 0]
            assert got.item() == pytest.approx(expected.item(), rel=1e-7, abs=1e-8)


def test_limits_at_pure_data_and_pure_noise() -> None:
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at_data, at_noise = mixture(prediction="x0"), mixture(prediction="noise")
    torch.testing.assert_close(at_data(x, 0.0), x)
    torch.testing.assert_close(at_noise(x, 1.0), x)
    mean = (at_data.weights[:, None, None] * at_data.means).sum(0) / at_data.weights.sum()
    torch.testing.assert_close(at_data(x, 1.0), mean.expand_as(x))


def test_sensitivity_and_rate_are_limits_of_differences() -> None:
    f = mixture(schedule=LinearBetaVP(horizon=1000.0), prediction="noise", spread=2.0)
    x, t = points(f, [0.1, 0.5, 0.9])
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    errors = []
    for step in (1e-2, 1e-3):
        in_x = rms(f(x + step * dx, t) - f(x, t)) / rms(step * dx)
        in_t = rms(f(x, t - 100 * step) - f(x, t)) / (100 * step)
        errors.append(torch.cat([in_x / f.sensitivity(x, t, dx) - 1, in_t / f.rate(x, t) - 1]).abs())
    assert errors[1].max() < 0.02
    assert (errors[1] < 0.2 * errors[0] + 1e-9).all()
    torch.testing.assert_close(f.sensitivity(x, t, 7 * dx), f.sensitivity(x, t, dx))


@pytest.mark.parametrize("per_dimension", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (2,)])
def test_spectral_norm_is_that_of_the_jacobian(per_dimension: bool, shape: tuple[int, ...]) -> None:
    f = mixture(per_dimension=per_dimension, shape=shape, spread=2.0)
    x, t = points(f, [0.0, 0.2, 0.6, 1.0])
    expected = torch.linalg.matrix_norm(f.jacobian(x, t), ord=2)
    torch.testing.assert_close(f.spectral_norm(x, t), expected, rtol=1e-9, atol=1e-12)


unit = st.floats(0.02, 1.0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    components=st.integers(1, 4),
    per_dimension=st.booleans(),
    schedule=st.sampled_from(SCHEDULES),
    prediction=st.sampled_from(PREDICTIONS),
    spread=st.sampled_from([0.3, 1.0, 4.0]),
    fraction_r=unit,
    fraction=unit,
    move=st.sampled_from([0.0, 0.01, 0.3, 3.0]),
    seed=st.integers(0, 1000),
)
def test_lipschitz_constants_bound_every_change(
    components: int,
    per_dimension: bool,
    schedule: AnalyticSchedule,
    prediction: PredictionType,
    spread: float,
    fraction_r: float,
    fraction: float,
    move: float,
    seed: int,
) -> None:
    f = mixture(components, per_dimension, schedule, prediction, seed, spread)
    x_r, t_r = points(f, [fraction_r, fraction_r], seed)
    t = torch.full_like(t_r, fraction * schedule.horizon)
    x = x_r + move * torch.randn(x_r.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    l_x, l_t = f.lipschitz(x_r, t_r, x, t)
    slack = 1 + 1e-9
    assert (rms(f(x, t) - f(x_r, t_r)) <= (l_x * rms(x - x_r) + l_t * (t - t_r).abs()) * slack + 1e-12).all()
    assert (rms(f(x, t_r) - f(x_r, t_r)) <= l_x * rms(x - x_r) * slack + 1e-12).all()
    # off the refinement's own grid, the constants still dominate what they are suprema of
    for share in (0.0, 0.137, 0.51, 0.883, 1.0):
        assert (f.spectral_norm(torch.lerp(x_r, x, share), t_r) <= l_x * slack + 1e-12).all()
        assert (f.rate(x, torch.lerp(t_r, t, share)) <= l_t * slack + 1e-12).all()


def test_lipschitz_is_tight() -> None:
    one = mixture(components=1)
    x_r, t_r = points(one, [0.6])
    l_x, _ = one.lipschitz(x_r, t_r, x_r + 1.0, t_r)
    torch.testing.assert_close(l_x, one.spectral_norm(x_r, t_r))
    f = mixture(components=3)
    x_r, t_r = points(f, [0.6])
    x = x_r + 0.3 * torch.ones_like(x_r)
    l_x, l_t = f.lipschitz(x_r, t_r, x, t_r - 0.1)
    shares = [i / 200 for i in range(201)]
    assert l_x <= 1.03 * max(f.spectral_norm(torch.lerp(x_r, x, s), t_r) for s in shares)
    assert l_t <= 1.03 * max(f.rate(x, t_r - 0.1 * s) for s in shares)


def test_lipschitz_is_tight_where_one_component_dominates() -> None:
    f = mixture(components=4, per_dimension=False, shape=(4, 8, 12, 12), schedule=FlowMatching(horizon=1000.0))
    x_r, t_r = points(f, [0.5])
    x = x_r + 0.02 * torch.randn(x_r.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    l_x, _ = f.lipschitz(x_r, t_r, x, t_r)
    assert l_x <= 1.03 * f.spectral_norm(x_r, t_r)


def test_rows_are_independent() -> None:
    f = mixture(schedule=FlowMatching(horizon=1000.0))
    x, t = points(f, [0.1, 0.5, 0.9])
    dx = torch.ones_like(x)
    for i in range(3):
        row = slice(i, i + 1)
        torch.testing.assert_close(f(x, t)[row], f(x[row], t[row]))
        torch.testing.assert_close(f.jvp(x, t, dx)[row], f.jvp(x[row], t[i], dx[row]))
        torch.testing.assert_close(f.rate(x, t)[row], f.rate(x[row], float(t[i])))
        torch.testing.assert_close(
            f.lipschitz(x, t, x + 1, t)[0][row], f.lipschitz(x[row], t[row], x[row] + 1, t[row])[0]
        )
    changed = x.clone()
    changed[1] = torch.nan
    assert torch.isfinite(f(changed, t)[[0, 2]]).all()
    assert torch.isnan(f(changed, t)[1]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_that_of_x(dtype: torch.dtype) -> None:
    f = mixture()
    x, t = points(f, [0.3, 0.8])
    low = x.to(dtype)
    assert f(low, t).dtype == f.jvp(low, t, low).dtype == f.jacobian(low, t).dtype == dtype
    assert f.time_derivative(low, t).dtype == dtype
    torch.testing.assert_close(f(low, t), f(low.double(), t).to(dtype), rtol=0, atol=0)


def test_samples_have_the_moments_of_the_mixture() -> None:
    f = mixture(per_dimension=False)
    drawn = f.sample(20000, torch.Generator().manual_seed(0))
    w = (f.weights / f.weights.sum())[:, None, None]
    mean = (w * f.means).sum(0)
    variance = (w * (f.variances[:, None, None] + f.means.square())).sum(0) - mean.square()
    assert (drawn.mean(0) - mean).abs().max() < 0.03
    assert (drawn.var(0) / variance - 1).abs().max() < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(3)}, r"means have shape \(3,\)"),
        ({"means": torch.full((2, 3), torch.nan)}, "means are not all finite"),
        ({"variances": torch.ones(3)}, r"variances have shape \(3,\); pass \(2,\)"),
        ({"variances": torch.tensor([1.0, 0.0])}, "variances have the minimum 0.0"),
        ({"weights": torch.ones(3)}, r"weights have shape \(3,\)"),
        ({"weights": torch.tensor([1.0, -1.0])}, "weights have the minimum -1.0"),
        ({"prediction": "epsilon"}, "prediction is 'epsilon'; use one of"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"means": torch.zeros(2, 3), "variances": torch.ones(2), "weights": torch.ones(2)}
    with pytest.raises(SettingsError, match=message):
        GaussianMixtureDenoiser(**{**good, **change})


def test_bad_inputs_are_refused() -> None:
    f = mixture()
    x = torch.zeros(2, *SHAPE)
    with pytest.raises(SettingsError, match="horizon of CosineVP is -1"):
        CosineVP(horizon=-1)
    with pytest.raises(InputError, match="x has shape"):
        f(torch.zeros(2, 3, 2), 0.5)
    with pytest.raises(InputError, match=r"torch\.int64"):
        f(x.long(), 0.5)
    with pytest.raises(InputError, match=r"t has shape \(3,\)"):
        f(x, torch.full((3,), 0.5))
    with pytest.raises(InputError, match="dx has a row of zeros"):
        f.sensitivity(x, 0.5, x)
    with pytest.raises(InputError, match="derivative in t is not finite"):
        mixture(schedule=LinearBetaVP()).time_derivative(x, 0.0)
