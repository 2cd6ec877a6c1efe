"""The closed forms of a Gaussian mixture on flat samples; `cachepolicies.reference.gaussian_mixture` derives them."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.reference.noise_schedules import AnalyticSchedule, Coefficients


@frozen
class Target:
    """Factors p, q of the predicted ``p x0 + q eps`` and their derivatives in t, ``(B, 1, 1)`` each."""

    p: Tensor
    q: Tensor
    p_rate: Tensor
    q_rate: Tensor


@frozen
class Posterior:
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
    target: Target

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
class MixturePosterior:
    """The posterior of a mixture's components, and the derivatives that follow from it.

    Attributes:
        means: ``(K, D)`` float64.
        variances: ``(K, 1)`` or ``(K, D)`` float64.
        weights: ``(K,)`` float64.
        schedule: alpha(t) and sigma(t).
        prediction: see `cachepolicies.reference.gaussian_mixture.GaussianMixtureDenoiser`.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    schedule: AnalyticSchedule
    prediction: PredictionType

    def _target(self, at: Coefficients) -> Target:
        one, zero = torch.ones_like(at.alpha), torch.zeros_like(at.alpha)
        if self.prediction == "velocity":
            return Target(-one, one, zero, zero)
        if self.prediction == "noise":
            return Target(zero, one, zero, zero)
        if self.prediction == "x0":
            return Target(one, zero, zero, zero)
        return Target(-at.sigma, at.alpha, -at.sigma_rate, at.alpha_rate)

    def posterior(self, x: Tensor, t: Tensor) -> Posterior:
        """Return what the closed forms need at x ``(B, D)`` and t ``(B,)``, float64."""
        at = self.schedule.coefficients(t[:, None, None])
        target = self._target(at)
        means = self.means.to(x.device)
        variances = self.variances.to(x.device)
        a, s = at.alpha, at.sigma
        c = (a.square() * variances + s.square()).expand(-1, -1, means.shape[1])
        e = x[:, None] - a * means
        g = (target.p * a * variances + target.q * s) / c
        log_joint = self.weights.to(x.device).log() - 0.5 * (c.log() + e.square() / c).sum(dim=2)
        r = torch.softmax(log_joint, dim=1)
        y = target.p * means + g * e
        return Posterior(c, e, g, y, log_joint, r, a, s, at.alpha_rate, at.sigma_rate, target)

    def jacobian(self, posterior: Posterior) -> Tensor:
        """Return the Jacobian in x, ``(B, D, D)``, symmetric."""
        covariance = torch.einsum("bk,bki,bkj->bij", posterior.r, posterior.y, posterior.centred(posterior.u))
        matrix = torch.diag_embed(posterior.mean(posterior.g)) + covariance
        return 0.5 * (matrix + matrix.mT)  # symmetric already, up to rounding

    def time_derivative(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the derivative in t at x ``(B, D)`` and t ``(B,)``: ``(B, D)``.

        Raises:
            InputError: it is not finite.
        """
        at = self.posterior(x, t)
        means = self.means.to(x.device)
        variances = self.variances.to(x.device)
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
                "x, and t > 0 where the noise schedule's sigma starts like sqrt(t)"
            )
        return derivative

    def spectral_norm(self, posterior: Posterior) -> Tensor:
        """Return the spectral norm of the Jacobian in x, ``(B,)``."""
        count, dimensions = posterior.y.shape[1:]
        if self.variances.shape[1] == 1 and dimensions > count:
            # g is one number per component: the Jacobian is E[g] times the identity plus a matrix of rank < K, whose
            # non-zero eigenvalues are those of a K x K product.
            shift = posterior.mean(posterior.g)[:, :1]
            inner = torch.einsum("bk,bkd,bjd->bkj", posterior.r, posterior.centred(posterior.u), posterior.y)
            low_rank: Tensor = torch.linalg.eigvals(inner)
            return torch.cat([shift + low_rank.real, shift], dim=1).abs().amax(dim=1)
        eigenvalues: Tensor = torch.linalg.eigvalsh(self.jacobian(posterior))
        return eigenvalues.abs().amax(dim=1)
