"""Largest values of a mixture's derivatives along a path: Lipschitz constants between two points.

`cachepolicies.reference.gaussian_mixture.GaussianMixtureDenoiser.lipschitz` says what is rigorous and what is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cachepolicies.reference.mixture_posterior import MixturePosterior, Posterior

MARGIN = 0.02
"""`GaussianMixtureDenoiser.lipschitz` refines its grids until their margin is this fraction of the constant."""
MOST_POINTS_X, MOST_POINTS_T = 129, 4097
"""Largest numbers of grid points that it uses."""
CHUNK = 64
"""Grid points evaluated at a time, to bound the memory."""


def supremum_along_x(mixture: MixturePosterior, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Bound the spectral norm of the Jacobian on the leg from ``start`` to ``end``, ``(D,)`` each, at t."""
    length = torch.linalg.vector_norm(end - start)
    if length == 0:
        return mixture.spectral_norm(mixture.posterior(start[None], t[None]))[0]
    leg = mixture.posterior(torch.stack([start, torch.lerp(start, end, 0.5), end]), t.expand(3))
    share = _largest_share(leg.log_joint)
    closed = leg.g.abs().amax() + share * _spread(leg.y) * _spread(leg.u)
    slope = share * _jacobian_slope(leg, (end - start) / length)
    points = 2
    while True:
        position = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=start.device)
        x = torch.lerp(start, end, position[:, None])
        norms = [mixture.spectral_norm(mixture.posterior(part, t.expand(len(part)))) for part in torch.split(x, CHUNK)]
        largest = torch.cat(norms).amax()
        margin = 0.5 * slope * length / (points - 1)
        if margin <= MARGIN * largest or points >= MOST_POINTS_X:
            return torch.minimum(closed, largest + margin)
        points = 2 * points - 1


def supremum_along_t(mixture: MixturePosterior, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return the largest RMS of the derivative in t at x ``(D,)``, between two t, as far as a grid shows it."""
    if start == end:
        return sample_rms(mixture.time_derivative(x[None], start[None]))[0]
    points = 17
    while True:
        position = torch.linspace(0.0, 1.0, points, dtype=torch.float64, device=x.device)
        parts = torch.split(torch.lerp(start, end, position), CHUNK)
        rates = torch.cat([mixture.time_derivative(x.expand(len(part), -1), part) for part in parts])
        largest, margin = sample_rms(rates).amax(), sample_rms(rates.diff(dim=0)).amax()
        if margin <= MARGIN * largest or points >= MOST_POINTS_T:
            return largest + margin
        points = 2 * points - 1


def sample_rms(values: Tensor) -> Tensor:
    """Return the root mean square of every sample, ``(B, ...)`` to ``(B,)``."""
    return values.flatten(1).square().mean(dim=1).sqrt()


def _spread(values: Tensor) -> Tensor:
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


def _jacobian_slope(leg: Posterior, direction: Tensor) -> Tensor:
    """Bound the spectral norm of the Jacobian's derivative along a segment, per unit of length and of `_largest_share`.

    With ``z_k = u_k . d`` for the unit direction d, the weights change as ``dr_k = r_k (z_k - E[z])``, so the
    derivative is ``Cov(z, g) + Cov(g d, u) + Cov(y, -d/c) + E[(y - E y)(u - E u)^T (z - E z)]``. Covariances are at
    most the share times the product of the ranges; the third moment at most the range of z times that.
    """
    along = torch.einsum("bkd,d->bk", leg.u, direction)[:, :, None]
    spread_y, spread_u, spread_z = _spread(leg.y), _spread(leg.u), _spread(along)
    spread_g = (leg.g.amax(dim=1) - leg.g.amin(dim=1)).amax()
    curvature = spread_z * spread_g + _spread(leg.g * direction) * spread_u + spread_y * _spread(direction / leg.c)
    return curvature + spread_z * spread_y * spread_u
