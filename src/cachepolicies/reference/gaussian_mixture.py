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

from typing import Any, get_args

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.reference.mixture_bounds import sample_rms, supremum_along_t, supremum_along_x
from cachepolicies.reference.mixture_posterior import MixturePosterior
from cachepolicies.reference.noise_schedules import AnalyticSchedule as AnalyticSchedule
from cachepolicies.reference.noise_schedules import CosineVP as CosineVP
from cachepolicies.reference.noise_schedules import CustomSchedule as CustomSchedule
from cachepolicies.reference.noise_schedules import FlowMatching as FlowMatching
from cachepolicies.reference.noise_schedules import LinearBetaVP as LinearBetaVP


def _float64(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


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
            t: a number, a 0-d tensor, or ``(B,)``, in ``[0, horizon]`` of the noise schedule.

        Returns:
            ``(B, *shape)`` the conditional mean of the target, in the dtype of x.

        Raises:
            InputError: x has another shape or is not floating point, or t has another length.
        """
        posterior = self._mixture.posterior(*self._checked(x, t))
        return posterior.mean(posterior.y).reshape(x.shape).to(x.dtype)

    def jvp(self, x: Tensor, t: Tensor | float, dx: Tensor) -> Tensor:
        """Return ``(B, *shape)``: the Jacobian in x times ``dx``, also ``(B, *shape)``. Raises as the call does."""
        posterior = self._mixture.posterior(*self._checked(x, t))
        direction = self._checked(dx, t)[0]
        along = torch.einsum("bkd,bd->bk", posterior.centred(posterior.u), direction)
        product = posterior.mean(posterior.g) * direction + posterior.mean(posterior.y * along[:, :, None])
        return product.reshape(x.shape).to(x.dtype)

    def jacobian(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the Jacobian in x, ``(B, D, D)`` for samples of D elements, symmetric. Raises as the call does.

        It is symmetric because every target is an affine function of x and of the gradient of log p(x).
        """
        return self._mixture.jacobian(self._mixture.posterior(*self._checked(x, t))).to(x.dtype)

    def time_derivative(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the derivative in t, ``(B, *shape)``, per unit of t.

        Raises:
            InputError: as the call, or the derivative is infinite (`LinearBetaVP` at t = 0).
        """
        return self._mixture.time_derivative(*self._checked(x, t)).reshape(x.shape).to(x.dtype)

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
        length = sample_rms(direction)
        if (length == 0).any():
            raise InputError("dx has a row of zeros; pass a direction for every row")
        return sample_rms(self.jvp(x.to(torch.float64), t, direction)) / length

    def rate(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the RMS of the derivative in t, float64 ``(B,)``: what calibration of alpha_t converges to.

        Raises:
            InputError: as `time_derivative`.
        """
        return sample_rms(self.time_derivative(x.to(torch.float64), t))

    def spectral_norm(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the spectral norm of the Jacobian in x, float64 ``(B,)``. Raises as the call does."""
        return self._mixture.spectral_norm(self._mixture.posterior(*self._checked(x, t)))

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
        along_x = [supremum_along_x(self._mixture, start[i], end[i], t_start[i]) for i in rows]
        along_t = [supremum_along_t(self._mixture, end[i], t_start[i], t_end[i]) for i in rows]
        return torch.stack(along_x), torch.stack(along_t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``(n, *shape)`` float64 data from the mixture."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        deviation = self._mixture.variances.sqrt().expand(self._mixture.means.shape).reshape(self.means.shape)
        return self.means[component] + deviation[component] * noise

    @property
    def _mixture(self) -> MixturePosterior:
        count = len(self.means)
        means, variances = self.means.reshape(count, -1), self.variances.reshape(count, -1)
        return MixturePosterior(means, variances, self.weights, self.schedule, self.prediction)

    def _checked(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point() or tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}; pass floating point of shape (B, *{self.shape})"
            )
        times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x))):
            raise InputError(f"t has shape {tuple(times.shape)}; pass a number or ({len(x)},)")
        return x.to(torch.float64).reshape(len(x), -1), times.expand(len(x))
