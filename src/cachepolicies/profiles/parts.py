"""The parts of a profile: curves, polynomials, trials, recommended settings, and whose they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from cachepolicies.base.converters import as_dict, floats, integers
from cachepolicies.base.curves import PiecewiseLinear
from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.profiles.checks import check_finite, check_noise_levels, plain_json, plain_settings, read_only
from cachepolicies.profiles.format import RECALIBRATE, RETRY, Interpolation

if TYPE_CHECKING:
    from cachepolicies.contracts.scheduler import Scheduler

_same_array = attrs.cmp_using(eq=np.array_equal, class_name="SameArray")


def _curve_values(values: Any) -> NDArray[np.float64]:
    try:
        return read_only(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ProfileError(
            f"curve field 'values' is not a rectangular array of numbers ({error}); {RECALIBRATE}"
        ) from error


def _config(values: Mapping[str, Any]) -> dict[str, Any]:
    return plain_json("config", values)


@frozen
class Curve:
    """A quantity as a function of t, one value per calibration sample.

    Attributes:
        t: M values of the scheduler's t, strictly decreasing.
        values: ``(M, S)`` float64, one column per sample.

    Raises:
        ProfileError: t is not strictly decreasing, or the values have the wrong shape or are not finite.
    """

    t: tuple[float, ...] = field(converter=floats)
    values: NDArray[np.float64] = field(converter=_curve_values, eq=_same_array, hash=False, repr=False)
    _line: PiecewiseLinear = field(init=False, repr=False, eq=False)

    @_line.default
    def _mean_rising_in_t(self) -> PiecewiseLinear:
        self._check()
        return PiecewiseLinear(self.t[::-1], tuple(self.values.mean(axis=1)[::-1].tolist()))

    def _check(self) -> None:
        check_noise_levels("curve field 't'", self.t)
        if self.values.ndim != 2 or self.values.shape[0] != len(self.t) or self.values.shape[1] < 1:
            raise ProfileError(
                f"curve field 'values' has shape {self.values.shape}, expected ({len(self.t)}, samples) "
                f"for {len(self.t)} values of t; {RECALIBRATE}"
            )
        check_finite("curve field 'values'", self.values)

    def mean(self) -> NDArray[np.float64]:
        """Return the mean over the samples, ``(M,)`` float64, in the order of ``t``."""
        return cast("NDArray[np.float64]", self.values.mean(axis=1))

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Return the q-quantile over the samples (linear between order statistics), ``(M,)`` float64."""
        if not 0.0 <= q <= 1.0:
            raise SettingsError(f"a quantile lies in [0, 1], got {q!r}; give 0.05 for the 5 % quantile")
        return cast("NDArray[np.float64]", np.quantile(self.values, q, axis=1))

    def spread(self) -> NDArray[np.float64]:
        """Return the standard deviation over the samples (not Bessel corrected), ``(M,)`` float64."""
        return cast("NDArray[np.float64]", self.values.std(axis=1))

    def at(self, t: float, interpolation: Interpolation = "nearest") -> float:
        """Return the mean over the samples at t; beyond the ends, the value of that end.

        Args:
            t: the scheduler's t.
            interpolation: ``"nearest"`` calibrated t (of two equally near, the larger), or ``"linear"`` between the
                two neighbours.

        Raises:
            InputError: t is NaN.
            SettingsError: another interpolation.
        """
        if t != t:
            raise InputError("a curve cannot be read at t = nan; check the t that the sampler passes")
        if interpolation == "linear":
            return self._line.at(t)
        if interpolation == "nearest":
            return self._line.nearest(t)
        raise SettingsError(f"unknown interpolation {interpolation!r}; choose 'nearest' or 'linear'")


@frozen
class Polynomial:
    """An estimate of the output's relative change from a signal's, both relative L1 changes over one step.

    Attributes:
        coefficients: highest power first.
        r_squared: coefficient of determination of the fit, 1 for a perfect one; ``None`` where it is not known.

    Raises:
        ProfileError: there is no coefficient, or a number is not finite.
    """

    coefficients: tuple[float, ...] = field(converter=floats)
    r_squared: float | None = None

    def __attrs_post_init__(self) -> None:
        if not self.coefficients or not all(math.isfinite(value) for value in self.coefficients):
            raise ProfileError(
                f"polynomial field 'coefficients' is {self.coefficients}, expected finite numbers, highest power first"
            )
        if self.r_squared is not None and not (math.isfinite(self.r_squared) and self.r_squared <= 1.0):
            raise ProfileError(f"polynomial field 'r_squared' is {self.r_squared}, expected a number of at most 1")

    @property
    def degree(self) -> int:
        """The highest power."""
        return len(self.coefficients) - 1

    def __call__(self, change: Any) -> Any:
        """Return the polynomial at a number, or at every entry of an array."""
        return np.polyval(self.coefficients, change)


@frozen
class Recommendation:
    """Settings that somebody recommends or has measured, with what they say of them. ``None``: they do not say.

    Attributes:
        policy: name of the policy.
        settings: of that policy, plain JSON values.
        speedup_stated: factor that is printed in the source.
        speedup_from_latency: factor between the latencies that are printed in the source; the two do not always agree.
        hardware: where it was measured.
        setting: resolution, length and the like.
        source: file and place that it is from.
        note: what else is said.
    """

    policy: str
    settings: Mapping[str, Any] = field(converter=plain_settings, hash=False)
    speedup_stated: float | None = None
    speedup_from_latency: float | None = None
    hardware: str | None = None
    setting: str | None = None
    source: str | None = None
    note: str | None = None

    def __attrs_post_init__(self) -> None:
        for what in ("speedup_stated", "speedup_from_latency"):
            factor = getattr(self, what)
            if factor is not None and not (math.isfinite(factor) and factor > 0):
                raise ProfileError(f"recommendation field {what!r} is {factor}, expected a finite number above 0")


@frozen
class ModelInfo:
    """Which network was calibrated.

    Attributes:
        class_name: see `cachepolicies.profiles.model_class_name`; a profile serves this class only.
        config_hash: sha256 of its configuration, where it has one.
        weights_hash: sha256 of its weights, where they were hashed.
    """

    class_name: str
    config_hash: str | None = None
    weights_hash: str | None = None


@frozen
class SchedulerInfo:
    """Which scheduler the calibration ran on.

    Attributes:
        name: `Scheduler.name`.
        family: `Scheduler.family`; a profile serves this family only.
        config: `Scheduler.config`, plain JSON values.
    """

    name: str
    family: str
    config: Mapping[str, Any] = field(factory=dict, converter=_config, hash=False)

    @classmethod
    def of(cls, scheduler: Scheduler) -> SchedulerInfo:
        """Return the record of a scheduler.

        Raises:
            ProfileError: its settings are no plain JSON values.
        """
        return cls(name=scheduler.name, family=scheduler.family, config=scheduler.config)


def _errors(values: Any) -> NDArray[np.float64]:
    try:
        return read_only(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"errors of trials are not a rectangular array of numbers ({error}); {RETRY}") from error


def _optional_errors(values: Any) -> NDArray[np.float64] | None:
    return None if values is None else _errors(values)


def _same_or_none(one: Any, other: Any) -> bool:
    return (one is None) == (other is None) and np.array_equal(one, other)


@frozen
class Trials:
    """What planned runs were off by, on samples that their plans were not made from.

    A calibration sample is tried with the plan that the other calibration samples give, any other with the plan that
    all of them give.

    Attributes:
        substitute: spec of the substitute.
        objective: name of the plans' objective.
        weights: kind of the plans' weights.
        budgets: B numbers of evaluations, increasing.
        seeds: one per sample, or empty.
        rms: ``(B, S)`` float64, RMS of the finished latent's difference from that of the uncached run, per element.
        picture_rms: the same of the decoded pictures, whose values lie in [0, 1], so that the PSNR is
            ``-20 log10(picture_rms)`` dB; None where nothing decoded them.
        versions: distribution name to version.

    Raises:
        ProfileError: the budgets do not increase, or errors have the wrong shape, are negative or not finite.
    """

    substitute: str
    objective: str
    weights: str
    budgets: tuple[int, ...] = field(converter=integers)
    seeds: tuple[int, ...] = field(converter=integers)
    rms: NDArray[np.float64] = field(converter=_errors, eq=_same_array, hash=False, repr=False)
    picture_rms: NDArray[np.float64] | None = field(
        default=None,
        converter=_optional_errors,
        eq=attrs.cmp_using(eq=_same_or_none, class_name="SameOrNone"),
        hash=False,
        repr=False,
    )
    versions: Mapping[str, str] = field(factory=dict, converter=as_dict, hash=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.budgets or self.budgets[0] < 1 or any(b <= a for a, b in pairwise(self.budgets)):
            raise ProfileError(f"trials field 'budgets' is {self.budgets}, expected increasing integers >= 1; {RETRY}")
        for what in ("rms", "picture_rms"):
            errors = getattr(self, what)
            if errors is None:
                continue
            if errors.ndim != 2 or errors.shape != (len(self.budgets), self.rms.shape[1]) or not errors.shape[1]:
                raise ProfileError(
                    f"trials field {what!r} has shape {errors.shape}, expected ({len(self.budgets)}, samples) for as "
                    f"many budgets; {RETRY}"
                )
            check_finite(f"trials field {what!r}", errors)
            if errors.min() < 0:
                raise ProfileError(f"trials field {what!r} has the value {errors.min()}, but it is a size; {RETRY}")
        if self.seeds and len(self.seeds) != self.rms.shape[1]:
            raise ProfileError(f"trials have {len(self.seeds)} seeds for {self.rms.shape[1]} samples; {RETRY}")

    @property
    def samples(self) -> int:
        """S, the number of samples that were tried."""
        return int(self.rms.shape[1])
