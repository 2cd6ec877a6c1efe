"""Noise schedules as differentiable functions of t, for denoisers whose derivatives are exact."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from attrs import Attribute, field, frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError


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
    """The continuous limit of DDPM's linear-beta noise schedule (VP-SDE, arXiv 2011.13456, eqs. 32 and 33).

    With ``tau = t/T``, ``alpha = exp(-B/2)`` and ``sigma = sqrt(1 - exp(-B))``, ``B = b0 tau + (b1 - b0) tau^2 / 2``.
    At t = 0 sigma grows like ``sqrt(t)``: its derivative is infinite there, and so are those of the denoiser in t.

    Attributes:
        horizon: the largest t.
        beta_min: b0, 1000 times the first beta of the 1000-step noise schedule.
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
    """A noise schedule given by two differentiable functions; the derivatives are taken by forward-mode autograd.

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
