"""The exact denoiser of a Gaussian mixture: every quantity that calibration estimates has a closed form here.

Data ``x0`` is drawn from ``sum_k w_k N(mu_k, diag(v_k))`` and noised to ``x = a x0 + s eps`` with ``a = alpha(t)``,
``s = sigma(t)``. Given component k, ``x ~ N(a mu_k, diag(c_k))`` with ``c_k = a^2 v_k + s^2``, and by Gaussian
conditioning, with ``e_k = x - a mu_k``,

    E[x0 | x, k] = mu_k + a v_k e_k / c_k,        E[eps | x, k] = s e_k / c_k.

The best prediction of ``p x0 + q eps`` is therefore ``f = sum_k r_k y_k`` with ``y_k = p mu_k + g_k e_k``,
``g_k = (p a v_k + q s) / c_k`` and ``r_k`` the posterior probability of component k. With ``l_k`` the log of the joint
density of k and x, ``u_k = grad_x l_k = -e_k / c_k``, and Cov_r the covariance over k under r,

    df/dx = diag(E_r[g]) + Cov_r(y, u),           df/dt = E_r[dy/dt] + Cov_r(y, dl/dt).

Nothing is divided by alpha or sigma, so all of it holds at pure data and at pure noise too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, get_args

import torch
from attrs import Attribute, field, frozen
from torch import Tensor

from cachepolicies._errors import InputError, SettingsError
from cachepolicies.schedulers.base import PredictionType

MARGIN = 0.02
"""`GaussianMixtureDenoiser.lipschitz` refines its grids until their margin is this fraction of the constant."""
MOST_POINTS_X, MOST_POINTS_T = 129, 4097
"""Largest numbers of grid points that it uses."""
CHUNK = 64
"""Grid points evaluated at a time, to bound the memory."""


@frozen
class Coefficients:
    """Factors of data and noise at some t, and their derivatives in t; four float64 tensors of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


def _positive(instance: object, attribute: Attribute[Any], value: object) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise SettingsError(f"{attribute.name} of {type(instance).__name__} is {value!r}; use a number > 0")


def _float64(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


@frozen
class AnalyticSchedule(ABC):
    """A noise schedule as differentiable functions of t in ``[0, horizon]``, data at 0 and noise at ``horizon``.

    Attributes:
        horizon: the largest t, for example 1 or 1000.
    """

    horizon: float = field(default=1.0, validator=_positive)

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at a float64 tensor t of any shape."""


@frozen
class FlowMatching(AnalyticSchedule):
    """The straight line ``alpha = 1 - t/T``, ``sigma = t/T`` (rectified flow, arXiv 2209.03003)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at a float64 tensor t of any shape."""
        sigma = t / self.horizon
        rate = torch.full_like(t, 1.0 / self.horizon)
        return Coefficients(1.0 - sigma, sigma, -rate, rate)


@frozen
class CosineVP(AnalyticSchedule):
    """The quarter circle ``alpha = cos(pi t / 2T)``, ``sigma = sin(pi t / 2T)`` (variance preserving)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at a float64 tensor t of any shape."""
        speed = 0.5 * math.pi / self.horizon
        alpha, sigma = torch.cos(speed * t), torch.sin(speed * t)
        return Coefficients(alpha, sigma, -speed * sigma, speed * alpha)


@frozen
class LinearBetaVP(AnalyticSchedule):
    """The continuous limit of DDPM's linear-beta schedule (VP-SDE, arXiv 2011.13456, eqs. 32 and 33).

    With ``tau = t/T``, ``alpha = exp(-B/2)`` and ``sigma = sqrt(1 - exp(-B))``, ``B = b0 tau + (b1 - b0) tau^2 / 2``.
    At t = 0 sigma grows like ``sqrt(t)``: its derivative is infinite there, and so are those of the denoiser in t.

    Attributes:
        horizon: the largest t.
        beta_min: b0, 1000 times the first beta of the 1000-step schedule.
        beta_max: b1, 1000 times its last beta.
    """

    beta_min: float = field(default=0.1, validator=_positive)
    beta_max: float = field(default=20.0, validator=_positive)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at a float64 tensor t of any shape."""
        tau = t / self.horizon
        slope = self.beta_max - self.beta_min
        integral = self.beta_min * tau + 0.5 * slope * tau.square()
        beta = (self.beta_min + slope * tau) / self.horizon
        alpha = torch.exp(-0.5 * integral)
        sigma = torch.sqrt(-torch.expm1(-integral))
        return Coefficients(alpha, sigma, -0.5 * beta * alpha, 0.5 * beta * alpha.square() / sigma)


@frozen
class CustomSchedule(AnalyticSchedule):
    """A schedule given by two differentiable functions; the derivatives are taken by forward-mode autograd.

    Attributes:
        horizon: the largest t.
        alpha: factor of the data, elementwise in t.
        sigma: factor of the noise, elementwise in t.
    """

    alpha: Callable[[Tensor], Tensor] = field(kw_only=True)
    sigma: Callable[[Tensor], Tensor] = field(kw_only=True)

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return alpha, sigma and their derivatives at a float64 tensor t of any shape."""
        ones = torch.ones_like(t)
        alpha, alpha_rate = torch.func.jvp(self.alpha, (t,), (ones,))[:2]
        sigma, sigma_rate = torch.func.jvp(self.sigma, (t,), (ones,))[:2]
        return Coefficients(alpha, sigma, alpha_rate, sigma_rate)


@frozen
class _Target:
    """Factors p, q of the predicted ``p x0 + q eps`` and their derivatives in t, ``(B, 1, 1)`` each."""

    p: Tensor
    q: Tensor
    p_rate: Tensor
    q_rate: Tensor


@frozen
class _Posterior:
    """What the closed forms need at some ``(x, t)``, for B rows, K components and D dimensions, float64.

    Attributes:
        c: ``(B, K, D)`` variance of x given the component.
        e: ``(B, K, D)`` x minus its mean given the component.
        g: ``(B, K, D)`` slope of the component's prediction.
        y: ``(B, K, D)`` the component's prediction.
        log_joint: ``(B, K)`` log of the joint density of component and x, up to a constant.
        r: ``(B, K)`` probability of the component.
        a: ``(B, 1, 1)`` alpha.
        s: ``(B, 1, 1)`` sigma.
        a_rate: ``(B, 1, 1)`` derivative of alpha.
        s_rate: ``(B, 1, 1)`` derivative of sigma.
        target: what is predicted.
    """

    c: Tensor
    e: Tensor
    g: Tensor
    y: Tensor
    log_joint: Tensor
    r: Tensor
    a: Tensor
    s: Tensor
    a_rate: Tensor
    s_rate: Tensor
    target: _Target

    @property
    def u(self) -> Tensor:
        """Gradient in x of the component's log density, ``(B, K, D)``."""
        return -self.e / self.c

    def mean(self, values: Tensor) -> Tensor:
        """Average ``(B, K, D)`` over the components: ``(B, D)``."""
        return torch.einsum("bk,bkd->bd", self.r, values)

    def centred(self, values: Tensor) -> Tensor:
        """Subtract that average: ``(B, K, D)``."""
        return values - self.mean(values)[:, None]


@frozen(eq=False)
class GaussianMixtureDenoiser:
    """The exact denoiser ``f(x, t)`` of a Gaussian mixture, with its derivatives; see the module for the formulas.

    Everything is computed in float64 and returned in the dtype of x, except where said otherwise.

    Attributes:
        means: ``(K, *shape)`` of the components.
        variances: of the components: ``(K,)`` for isotropic ones, or ``(K, *shape)``, one per dimension. Positive.
        weights: ``(K,)`` of the components, positive; they are normalised.
        schedule: alpha(t) and sigma(t).
        prediction: ``"velocity"`` (noise - data), ``"noise"``, ``"x0"`` or ``"v"`` (alpha noise - sigma data).

    Raises:
        SettingsError: the shapes do not agree, a variance or weight is not positive, or the prediction is unknown.
    """

    means: Tensor = field(converter=_float64)
    variances: Tensor = field(converter=_float64)
    weights: Tensor = field(converter=_float64)
    schedule: AnalyticSchedule = field(factory=FlowMatching)
    prediction: PredictionType = "velocity"

    def __attrs_post_init__(self) -> None:
        """Check the shapes and the values."""
        if self.means.ndim < 2 or len(self.means) == 0:
            raise SettingsError(f"means have shape {tuple(self.means.shape)}; pass (K, *shape) with K >= 1")
        count = len(self.means)
        if self.variances.shape not in ((count,), self.means.shape):
            raise SettingsError(
                f"variances have shape {tuple(self.variances.shape)}; pass ({count},) or {tuple(self.means.shape)}"
            )
        if self.weights.shape != (count,):
            raise SettingsError(f"weights have shape {tuple(self.weights.shape)}; pass ({count},)")
        if not torch.isfinite(self.means).all():
            raise SettingsError("means are not all finite; pass finite means")
        for name, values in (("variances", self.variances), ("weights", self.weights)):
            if not (torch.isfinite(values).all() and (values > 0).all()):
                raise SettingsError(f"{name} have the minimum {values.min().item()}; pass finite values > 0")
        if self.prediction not in get_args(PredictionType):
            raise SettingsError(f"prediction is {self.prediction!r}; use one of {get_args(PredictionType)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.means.shape[1:])

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Predict.

        Args:
            x: ``(B, *shape)`` floating point.
            t: a number, a 0-d tensor, or ``(B,)``, in ``[0, horizon]`` of the schedule.

        Returns:
            ``(B, *shape)`` the conditional mean of the target, in the dtype of x.

        Raises:
            InputError: x has another shape or is not floating point, or t has another length.
        """
        posterior = self._posterior(*self._checked(x, t))
        return posterior.mean(posterior.y).reshape(x.shape).to(x.dtype)

    def jvp(self, x: Tensor, t: Tensor | float, dx: Tensor) -> Tensor:
        """Return ``(B, *shape)``: the Jacobian in x times ``dx``, also ``(B, *shape)``. Raises as the call does."""
        posterior = self._posterior(*self._checked(x, t))
        direction = self._checked(dx, t)[0]
        along = torch.einsum("bkd,bd->bk", posterior.centred(posterior.u), direction)
        product = posterior.mean(posterior.g) * direction + posterior.mean(posterior.y * along[:, :, None])
        return product.reshape(x.shape).to(x.dtype)

    def jacobian(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the Jacobian in x, ``(B, D, D)`` for samples of D elements, symmetric. Raises as the call does.

        It is symmetric because every target is an affine function of x and of the gradient of log p(x).
        """
        return self._jacobian(self._posterior(*self._checked(x, t))).to(x.dtype)

    def time_derivative(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the derivative in t, ``(B, *shape)``, per unit of t.

        Raises:
            InputError: as the call, or the derivative is infinite (`LinearBetaVP` at t = 0).
        """
        return self._time_derivative(*self._checked(x, t)).reshape(x.shape).to(x.dtype)

    def sensitivity(self, x: Tensor, t: Tensor | float, dx: Tensor) -> Tensor:
        """Return ``norm(J dx) / norm(dx)``, float64 ``(B,)``: what calibration of alpha_x converges to. No units.

        Args:
            x: ``(B, *shape)``.
            t: as in the call.
            dx: ``(B, *shape)`` direction; its length does not matter.

        Raises:
            InputError: as the call, or a row of ``dx`` is zero.
        """
        direction = dx.to(torch.float64)
        length = _rms(direction)
        if (length == 0).any():
            raise InputError("dx has a row of zeros; pass a direction for every row")
        return _rms(self.jvp(x.to(torch.float64), t, direction)) / length

    def rate(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the RMS of the derivative in t, float64 ``(B,)``: what calibration of alpha_t converges to.

        Raises:
            InputError: as `time_derivative`.
        """
        return _rms(self.time_derivative(x.to(torch.float64), t))

    def spectral_norm(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the spectral norm of the Jacobian in x, float64 ``(B,)``. Raises as the call does."""
        return self._spectral_norm(self._posterior(*self._checked(x, t)))

    def lipschitz(self, x_r: Tensor, t_r: Tensor | float, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return L_x, L_t such that ``rms(f(x, t) - f(x_r, t_r)) <= L_x rms(x - x_r) + L_t |t - t_r|``, row by row.

        The path goes from x_r to x at t_r, then from t_r to t at x. L_x bounds the spectral norm of the Jacobian on
        the first leg, L_t the RMS of the time derivative on the second.

        L_x is rigorous: the smaller of two upper bounds. The first is closed: ``max |g| + h D_y D_u``. The ranges D of
        y and u over the components are largest at an end of the leg, because y and u are affine in x. A variable of
        range D has at most the variance ``D^2 / 4`` (Popoviciu), and at most ``q D^2`` where all components but one
        have a total probability of at most q; h is the smaller of 1/4 and of q, which is bounded on the whole leg
        through the log odds, quadratic in the position. The second is the maximum on a grid plus half its spacing
        times a bound of the same kind on the Jacobian's derivative along the leg.

        L_t is the maximum on a grid plus the largest difference between neighbours; that covers what lies between
        two points as long as the second derivative there is below twice the largest one that the grid shows.

        Both grids are refined until the margin is 2 % of the maximum or the grid reaches its limit (`MARGIN`,
        `MOST_POINTS_X`, `MOST_POINTS_T`). Up to that limit both are within 2 % of the exact suprema, and for one
        component L_x is exact. Beyond it, which takes a long leg between components far apart, L_x is a valid bound
        but a loose one.

        Args:
            x_r: ``(B, *shape)`` the start.
            t_r: its t, as in the call.
            x: ``(B, *shape)`` the end.
            t: its t, as in the call.

        Returns:
            L_x (no units) and L_t (RMS per unit of t), float64 ``(B,)`` each.

        Raises:
            InputError: as `time_derivative`.
        """
        start, t_start = self._checked(x_r, t_r)
        end, t_end = self._checked(x, t)
        if start.shape != end.shape:
            raise InputError(f"x_r has shape {tuple(x_r.shape)} and x {tuple(x.shape)}; pass equal shapes")
        rows = range(len(start))
        along_x = [self._supremum_along_x(start[i], end[i], t_start[i]) for i in rows]
        along_t = [self._supremum_along_t(end[i], t_start[i], t_end[i]) for i in rows]
        return torch.stack(along_x), torch.stack(along_t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``(n, *shape)`` float64 data from the mixture."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        deviation = self._variances().sqrt().expand(len(self.means), self.means[0].numel()).reshape(self.means.shape)
        return self.means[component] + deviation[component] * noise

    def _variances(self) -> Tensor:
        """``(K, 1)`` or ``(K, D)``."""
        return self.variances.reshape(len(self.means), -1)

    def _checked(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point() or tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; pass floating point of shape (B, *{self.shape})"
            )
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x))):
            raise InputError(f"t has shape {tuple(times.shape)}; pass a number or ({len(x)},)")
        return x.to(torch.float64).reshape(len(x), -1), times.expand(len(x))

    def _target(self, at: Coefficients) -> _Target:
        one, zero = torch.ones_like(at.alpha), torch.zeros_like(at.alpha)
        if self.prediction == "velocity":
            return _Target(-one, one, zero, zero)
        if self.prediction == "noise":
            return _Target(zero, one, zero, zero)
        if self.prediction == "x0":
            return _Target(one, zero, zero, zero)
        return _Target(-at.sigma, at.alpha, -at.sigma_rate, at.alpha_rate)

    def _posterior(self, x: Tensor, t: Tensor) -> _Posterior:
        """``x`` is ``(B, D)`` and ``t`` ``(B,)``, float64."""
        at = self.schedule.coefficients(t[:, None, None])
        target = self._target(at)
        means = self.means.to(x.device).reshape(len(self.means), -1)
        variances = self._variances().to(x.device)
        a, s = at.alpha, at.sigma
        c = (a.square() * variances + s.square()).expand(-1, -1, means.shape[1])
        e = x[:, None] - a * means
        g = (target.p * a * variances + target.q * s) / c
        log_joint = self.weights.to(x.device).log() - 0.5 * (c.log() + e.square() / c).sum(dim=2)
        r = torch.softmax(log_joint, dim=1)
        y = target.p * means + g * e
        return _Posterior(c, e, g, y, log_joint, r, a, s, at.alpha_rate, at.sigma_rate, target)

    def _jacobian(self, posterior: _Posterior) -> Tensor:
        covariance = torch.einsum("bk,bki,bkj->bij", posterior.r, posterior.y, posterior.centred(posterior.u))
        matrix = torch.diag_embed(posterior.mean(posterior.g)) + covariance
        return 0.5 * (matrix + matrix.mT)  # symmetric already, up to rounding

    def _time_derivative(self, x: Tensor, t: Tensor) -> Tensor:
        at = self._posterior(x, t)
        means = self.means.to(x.device).reshape(len(self.means), -1)
        variances = self._variances().to(x.device)
        p, q, p_rate, q_rate = at.target.p, at.target.q, at.target.p_rate, at.target.q_rate
        c_rate = 2.0 * (at.a * at.a_rate * variances + at.s * at.s_rate)
        slope_rate = (p_rate * at.a + p * at.a_rate) * variances + q_rate * at.s + q * at.s_rate
        g_rate = (slope_rate - at.g * c_rate) / at.c
        y_rate = p_rate * means + g_rate * at.e - at.g * at.a_rate * means
        squares = at.e.square() / at.c
        log_rate = (at.a_rate * means * at.e / at.c + 0.5 * (squares - 1.0) * c_rate / at.c).sum(dim=2)
        weight_rate = at.r * (log_rate - (at.r * log_rate).sum(dim=1, keepdim=True))
        derivative = at.mean(y_rate) + torch.einsum("bk,bkd->bd", weight_rate, at.y)
        if not torch.isfinite(derivative).all():
            raise InputError(
                f"the derivative in t is not finite between t = {t.min().item()} and t = {t.max().item()}; pass finite "
                "x, and t > 0 where the schedule's sigma starts like sqrt(t)"
            )
        return derivative

    def _spectral_norm(self, posterior: _Posterior) -> Tensor:
        count, dimensions = posterior.y.shape[1:]
        if self.variances.ndim == 1 and dimensions > count:
            # g is one number per component: the Jacobian is E[g] times the identity plus a matrix of rank < K, whose
            # non-zero eigenvalues are those of a K x K product.
            shift = posterior.mean(posterior.g)[:, :1]
            inner = torch.einsum("bk,bkd,bjd->bkj", posterior.r, posterior.centred(posterior.u), posterior.y)
            low_rank: Tensor = torch.linalg.eigvals(inner)
            return torch.cat([shift + low_rank.real, shift], dim=1).abs().amax(dim=1)
        eigenvalues: Tensor = torch.linalg.eigvalsh(self._jacobian(posterior))
        return eigenvalues.abs().amax(dim=1)

    def _supremum_along_x(self, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(end - start)
        if length == 0:
            return self._spectral_norm(self._posterior(start[None], t[None]))[0]
        leg = self._posterior(torch.stack([start, torch.lerp(start, end, 0.5), end]), t.expand(3))
        share = _largest_share(leg.log_joint)
        closed = leg.g.abs().amax() + share * _range(leg.y) * _range(leg.u)
        slope = share * _jacobian_slope(leg, (end - start) / length)
        points = 2
        while True:
            position = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=start.device)
            x = torch.lerp(start, end, position[:, None])
            norms = [self._spectral_norm(self._posterior(part, t.expand(len(part)))) for part in torch.split(x, CHUNK)]
            largest = torch.cat(norms).amax()
            margin = 0.5 * slope * length / (points - 1)
            if margin <= MARGIN * largest or points >= MOST_POINTS_X:
                return torch.minimum(closed, largest + margin)
            points = 2 * points - 1

    def _supremum_along_t(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        if start == end:
            return _rms(self._time_derivative(x[None], start[None]))[0]
        points = 17
        while True:
            position = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=x.device)
            parts = torch.split(torch.lerp(start, end, position), CHUNK)
            rates = torch.cat([self._time_derivative(x.expand(len(part), -1), part) for part in parts])
            largest, margin = _rms(rates).amax(), _rms(rates.diff(dim=0)).amax()
            if margin <= MARGIN * largest or points >= MOST_POINTS_T:
                return largest + margin
            points = 2 * points - 1


def _rms(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(dim=1).sqrt()


def _range(values: Tensor) -> Tensor:
    """Largest distance between two components, over all rows of ``(B, K, D)``."""
    distances: Tensor = torch.linalg.vector_norm(values[:, :, None] - values[:, None], dim=3)
    return distances.amax()


def _largest_share(log_joint: Tensor) -> Tensor:
    """Bound the variance over the components on a segment, as a share of the squared range.

    Args:
        log_joint: ``(3, K)`` at the start, the middle and the end of the segment; quadratic in between.

    Returns:
        The smaller of 1/4 and of what a dominant component leaves to the others, anywhere on the segment.
    """
    log_odds = log_joint[:, None, :] - log_joint[:, :, None]  # (3, K, K): of the last against the middle axis
    start, middle, end = log_odds
    curvature = 2.0 * (start - 2.0 * middle + end)
    slope = 4.0 * middle - 3.0 * start - end
    vertex = torch.where(curvature < 0, -slope / (2.0 * curvature), torch.zeros_like(slope)).clamp(0.0, 1.0)
    largest = torch.maximum(torch.maximum(start, end), start + slope * vertex + curvature * vertex.square())
    others = (largest.exp().sum(dim=1) - largest.diagonal().exp()).amin()
    return others.clamp(max=0.25)


def _jacobian_slope(leg: _Posterior, direction: Tensor) -> Tensor:
    """Bound the spectral norm of the Jacobian's derivative along a segment, per unit of length and of `_largest_share`.

    With ``z_k = u_k . d`` for the unit direction d, the weights change as ``dr_k = r_k (z_k - E[z])``, so the
    derivative is ``Cov(z, g) + Cov(g d, u) + Cov(y, -d/c) + E[(y - E y)(u - E u)^T (z - E z)]``. Covariances are at
    most the share times the product of the ranges; the third moment at most the range of z times that.
    """
    along = torch.einsum("bkd,d->bk", leg.u, direction)[:, :, None]
    spread_y, spread_u, spread_z = _range(leg.y), _range(leg.u), _range(along)
    spread_g = (leg.g.amax(dim=1) - leg.g.amin(dim=1)).amax()
    curvature = spread_z * spread_g + _range(leg.g * direction) * spread_u + spread_y * _range(direction / leg.c)
    return curvature + spread_z * spread_y * spread_u
