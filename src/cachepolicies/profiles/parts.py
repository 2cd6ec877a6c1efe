"""The parts of a profile: curves, polynomials, recommended settings, and which model and scheduler they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from cachepolicies.base.converters import floats
from cachepolicies.base.curves import PiecewiseLinear
from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.profiles.checks import check_finite, check_noise_levels, plain_json, plain_settings, read_only
from cachepolicies.profiles.format import RECALIBRATE, Interpolation

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
