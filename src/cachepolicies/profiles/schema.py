"""What a calibration measured for one (model, scheduler), as frozen records that check themselves."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, cast

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from cachepolicies._errors import InputError, NeedsError, ProfileError, SettingsError

FORMAT_VERSION = 2
"""Version of the profile format that this library writes; it reads this one and version 1."""

Interpolation: TypeAlias = Literal["nearest", "linear"]
"""How a curve is read between its points."""

Trajectory: TypeAlias = Literal["model", "noised"]
"""Where the calibration points lie: on runs of the model itself, or on data with noise added."""

Array: TypeAlias = NDArray[Any]

RECALIBRATE = "calibrate again with `cachepolicies calibrate` or cachepolicies.calibration.calibrate"
"""The remedy that most messages end with."""

DEFAULT_UNITS: Mapping[str, str] = {
    "norm": "root mean square per element of one sample, ||v||_2 / sqrt(numel), in float32 or wider",
    "t": "the scheduler's t, as the denoiser is called with",
    "alpha_x": "RMS change of the output per RMS change of x (dimensionless)",
    "alpha_t": "RMS change of the output per unit of t",
    "rho": "correlation of the output's changes with x and with t (dimensionless)",
    "weight": "RMS change of the sample per RMS change of the output at a step (dimensionless)",
    "displacement": "RMS change of x between two steps",
    "change": "RMS change of the output between two steps",
    "magnitude_ratio": "size of the residual over that at the step before (dimensionless)",
    "signal_change": "relative L1 change of a signal between two steps (dimensionless)",
    "output_change": "relative L1 change of the output between two steps (dimensionless)",
}
"""Units of the curves and tables that `cachepolicies.calibration.calibrate` writes."""

Origin: TypeAlias = Literal["measured", "published"]
"""Whether a calibration of this library measured a profile, or its numbers were published by a method's authors."""

_ORIGINS = ("measured", "published")
_PREDICTION_TYPES = ("velocity", "noise", "x0", "v")
_TRAJECTORIES = ("model", "noised")
_SQUARE_TABLES = ("displacement", "change")
_RATIO = "magnitude_ratio"
_CHANGES = ("signal_change", "output_change")
_same_array = attrs.cmp_using(eq=np.array_equal, class_name="SameArray")


def _same_tables(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _strings(values: Mapping[str, str]) -> dict[str, str]:
    return dict(values)


def _curves(values: Mapping[str, Curve]) -> dict[str, Curve]:
    return dict(values)


def _names(values: Mapping[str, Any]) -> str:
    return str(sorted(values))


def _read_only(values: Any, dtype: type[np.generic] | None = None) -> Array:
    array = np.array(values, dtype=dtype)  # a copy: a profile cannot be changed from outside
    array.flags.writeable = False
    return array


def _curve_values(values: Any) -> NDArray[np.float64]:
    try:
        return _read_only(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ProfileError(
            f"curve field 'values' is not a rectangular array of numbers ({error}); {RECALIBRATE}"
        ) from error


def _tables(values: Mapping[str, Any]) -> dict[str, Array]:
    return {str(name): _read_only(array) for name, array in values.items()}


def _plain_json(what: str, values: Any) -> dict[str, Any]:
    """Return the mapping as it will be read back, so that a profile equals its own file."""
    if not isinstance(values, Mapping):
        raise ProfileError(f"field {what!r} is {values!r}, not a mapping; {RECALIBRATE}")
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(dict(values), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ProfileError(
            f"field {what!r} holds something JSON cannot ({error}): {values!r}; "
            "give numbers, strings, booleans, None, lists and dicts of them"
        ) from error


def _plain_config(values: Mapping[str, Any]) -> dict[str, Any]:
    return _plain_json("config", values)


def _plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return _plain_json("settings", values)


def _plain_source(values: Mapping[str, Any]) -> dict[str, Any]:
    return _plain_json("source", values)


def _optional_integers(values: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _polynomials(values: Mapping[str, Polynomial]) -> dict[str, Polynomial]:
    return dict(values)


def _recommended(values: Iterable[Recommendation]) -> tuple[Recommendation, ...]:
    return tuple(values)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _check_decreasing(what: str, values: tuple[float, ...]) -> None:
    if not values:
        raise ProfileError(f"{what} is empty; {RECALIBRATE}")
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise ProfileError(f"{what}[{index}] is {value}, not a finite number; {RECALIBRATE}")
        if index and value >= values[index - 1]:
            raise ProfileError(
                f"{what} must be strictly decreasing, but {what}[{index}] = {value} follows {values[index - 1]}; "
                f"sort it from the first noise level to the last, or {RECALIBRATE}"
            )


def _check_finite(what: str, array: Array) -> None:
    if array.dtype.kind not in "fiu":
        raise ProfileError(f"{what} has dtype {array.dtype}, not numbers; {RECALIBRATE}")
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ProfileError(f"{what} has the non-finite value {array[index]} at {list(index)}; {RECALIBRATE}")


@frozen
class Curve:
    """A quantity as a function of t, one value per calibration sample.

    Attributes:
        t: M values of the scheduler's t, strictly decreasing.
        values: ``(M, S)`` float64, one column per sample.

    Raises:
        ProfileError: t is not strictly decreasing, or the values have the wrong shape or are not finite.
    """

    t: tuple[float, ...] = field(converter=_floats)
    values: NDArray[np.float64] = field(converter=_curve_values, eq=_same_array, hash=False, repr=False)
    _rising_t: list[float] = field(init=False, repr=False, eq=False)
    _rising_mean: list[float] = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        _check_decreasing("curve field 't'", self.t)
        if self.values.ndim != 2 or self.values.shape[0] != len(self.t) or self.values.shape[1] < 1:
            raise ProfileError(
                f"curve field 'values' has shape {self.values.shape}, expected ({len(self.t)}, samples) "
                f"for {len(self.t)} values of t; {RECALIBRATE}"
            )
        _check_finite("curve field 'values'", self.values)
        # plain lists: bisect on them takes well under a microsecond, numpy's calls several
        object.__setattr__(self, "_rising_t", list(reversed(self.t)))
        object.__setattr__(self, "_rising_mean", self.values.mean(axis=1)[::-1].tolist())

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
        ts, means = self._rising_t, self._rising_mean
        if t != t:
            raise InputError("a curve cannot be read at t = nan; check the t that the sampler passes")
        if interpolation not in ("nearest", "linear"):
            raise SettingsError(f"unknown interpolation {interpolation!r}; choose 'nearest' or 'linear'")
        right = bisect_left(ts, t)
        if right == 0:
            return means[0]
        if right == len(ts):
            return means[-1]
        low, high = ts[right - 1], ts[right]
        if interpolation == "nearest":
            return means[right] if high - t <= t - low else means[right - 1]
        share = (t - low) / (high - low)
        return means[right - 1] * (1.0 - share) + means[right] * share


@frozen
class Polynomial:
    """An estimate of the output's relative change from a signal's, both relative L1 changes over one step.

    Attributes:
        coefficients: highest power first.
        r_squared: coefficient of determination of the fit, 1 for a perfect one; ``None`` where it is not known.

    Raises:
        ProfileError: there is no coefficient, or a number is not finite.
    """

    coefficients: tuple[float, ...] = field(converter=_floats)
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
    settings: Mapping[str, Any] = field(converter=_plain_settings, hash=False)
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
    config: Mapping[str, Any] = field(factory=dict, converter=_plain_config, hash=False)


@frozen
class Profile:
    """What a calibration measured for one (model, scheduler), or what a method's authors published for a model.

    Curves and tables are looked up by name, so that a policy from anywhere may add its own. The built-in names are

    - the curves ``alpha_x`` and ``alpha_t`` (SenCache, arXiv 2602.24208, eqs. 11 and 12);
    - the curve ``rho``, the correlation of the two differences in these equations, in [-1, 1];
    - the curve ``weight``: RMS change of the finished sample per RMS change of the output at a step, for every step or
      some of them. It belongs to the step from there to the next timestep, and grows with its length;
    - the tables ``displacement`` D(r, k), the RMS of x_k - x_r, and ``change`` E(r, k), the RMS of
      f(x_k, t_k) - f(x_r, t_r), both ``(N, N, S)``, float64 (float32 in earlier profiles). Norms are root mean squares
      per element;
    - the tables ``magnitude_ratio``, or one ``magnitude_ratio.<stream>`` for every stream (MagCache, arXiv
      2506.09045): ``(N, S)`` float64, row k is the size of the residual at step k over that at step k - 1, row 0 is 1.
      A published one may have another number of rows than N where its source does;
    - the tables ``signal_change.<signal>`` and ``output_change``: ``(N - 1, S)``, relative L1 changes from step to
      step, the points that a polynomial was fitted to (TeaCache, arXiv 2411.19108). Measured profiles only.

    In a published profile, what its source does not say is unknown: ``timesteps`` may be empty and
    ``prediction_type``, ``latent_shape``, ``scheduler`` and ``dtype`` ``None``. In a measured one they are there.

    Attributes:
        name: what it is called in messages and lists.
        model: the network.
        prediction_type: ``"velocity"``, ``"noise"``, ``"x0"`` or ``"v"``; or ``None``.
        latent_shape: shape of one sample, without the batch; or ``None``.
        scheduler: the scheduler; or ``None``.
        timesteps: N values of the scheduler's t, strictly decreasing, one per step; or empty.
        final_t: t of the sample, or None where the denoiser cannot be evaluated there.
        dtype: of the latents, for example ``"float32"``; or ``None``.
        guidance: guidance scale in the calibrated denoiser, None without guidance.
        samples: S, the number of calibration samples.
        seeds: one per sample, or empty.
        trajectory: ``"model"`` or ``"noised"``.
        evaluations: denoiser evaluations made per sample.
        versions: distribution name to version.
        units: table name to its unit.
        created: UTC time in ISO 8601; provenance only, left out of comparisons.
        notes: free text.
        curves: name to `Curve` with S columns, or one where the quantity belongs to all samples.
        tables: name to array; read-only.
        origin: ``"measured"`` or ``"published"``.
        stated_steps: number of steps that a published profile without timesteps belongs to, ``None`` if not stated.
        polynomials: signal name to the polynomial that estimates the output's change from the signal's.
        settings: policy name to the settings that it uses with this profile where the user gives none.
        recommended: settings from the source with the speed-ups that it states.
        source: where published numbers are from: repositories, files, papers, checksums; plain JSON.
        irregularities: what about the published numbers is odd, or cannot be expressed by the settings.
        version: of the format.

    Raises:
        ProfileError: a field is out of range, unsorted, not finite or has the wrong shape.
    """

    name: str
    model: ModelInfo
    prediction_type: str | None
    latent_shape: tuple[int, ...] | None = field(converter=_optional_integers)
    scheduler: SchedulerInfo | None
    timesteps: tuple[float, ...] = field(converter=_floats)
    final_t: float | None = None
    dtype: str | None = "float32"
    guidance: float | None = None
    samples: int = 1
    seeds: tuple[int, ...] = field(default=(), converter=_integers)
    trajectory: str = "model"
    evaluations: int = 0
    versions: Mapping[str, str] = field(factory=dict, converter=_strings, hash=False)
    units: Mapping[str, str] = field(factory=lambda: dict(DEFAULT_UNITS), converter=_strings, hash=False)
    created: str = field(default="", eq=False)
    notes: str = ""
    curves: Mapping[str, Curve] = field(factory=dict, converter=_curves, hash=False, repr=_names)
    tables: Mapping[str, Array] = field(
        factory=dict, converter=_tables, eq=attrs.cmp_using(eq=_same_tables), hash=False, repr=_names
    )
    origin: Origin = "measured"
    stated_steps: int | None = None
    polynomials: Mapping[str, Polynomial] = field(factory=dict, converter=_polynomials, hash=False)
    settings: Mapping[str, Mapping[str, Any]] = field(factory=dict, converter=_plain_settings, hash=False)
    recommended: tuple[Recommendation, ...] = field(default=(), converter=_recommended)
    source: Mapping[str, Any] = field(factory=dict, converter=_plain_source, hash=False)
    irregularities: tuple[str, ...] = field(default=(), converter=_texts)
    version: int = FORMAT_VERSION

    def __attrs_post_init__(self) -> None:
        if self.version != FORMAT_VERSION:
            raise ProfileError(
                f"field 'version' is {self.version!r}, this library reads {FORMAT_VERSION}; "
                "update cachepolicies, or calibrate again"
            )
        self._check_choice("origin", self.origin, _ORIGINS)
        for what, text in (("name", self.name), ("model.class_name", self.model.class_name), ("dtype", self.dtype)):
            if text == "":
                raise ProfileError(f"field {what!r} is empty; {RECALIBRATE}")
        if self.origin == "measured":
            self._check_known()
        if self.prediction_type is not None:
            self._check_choice("prediction_type", self.prediction_type, _PREDICTION_TYPES)
        self._check_choice("trajectory", self.trajectory, _TRAJECTORIES)
        self._check_steps()
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ProfileError(f"field 'guidance' is {self.guidance}, not a finite number; {RECALIBRATE}")
        if self.latent_shape is not None and (not self.latent_shape or min(self.latent_shape) < 1):
            raise ProfileError(f"field 'latent_shape' is {self.latent_shape}, expected positive sizes; {RECALIBRATE}")
        if self.samples < 1:
            raise ProfileError(f"field 'samples' is {self.samples}, expected at least 1; {RECALIBRATE}")
        if self.seeds and len(self.seeds) != self.samples:
            raise ProfileError(
                f"field 'seeds' has {len(self.seeds)} entries for {self.samples} samples; give one each, or none"
            )
        for policy, settings in self.settings.items():
            if not isinstance(settings, Mapping):
                raise ProfileError(
                    f"field 'settings' has {settings!r} for policy {policy!r}, expected name: value pairs"
                )
        self._check_curves()
        self._check_tables()

    def _check_known(self) -> None:
        for what in ("prediction_type", "latent_shape", "scheduler", "dtype"):
            if getattr(self, what) is None:
                raise ProfileError(f"field {what!r} is None, which only a published profile may have; {RECALIBRATE}")
        if self.stated_steps is not None:
            raise ProfileError(
                f"field 'stated_steps' is {self.stated_steps}, which only a published profile may have; "
                "a measured one has its timesteps"
            )

    def _check_steps(self) -> None:
        if self.timesteps or self.origin == "measured":
            _check_decreasing("field 'timesteps'", self.timesteps)
        if self.stated_steps is not None and self.stated_steps < 1:
            raise ProfileError(f"field 'stated_steps' is {self.stated_steps}, expected at least 1, or None")
        if self.timesteps and self.stated_steps not in (None, len(self.timesteps)):
            raise ProfileError(
                f"field 'stated_steps' is {self.stated_steps}, but there are {len(self.timesteps)} timesteps"
            )
        last = self.timesteps[-1] if self.timesteps else math.inf
        if self.final_t is not None and not (math.isfinite(self.final_t) and self.final_t <= last):
            raise ProfileError(
                f"field 'final_t' is {self.final_t}, expected a finite number of at most the last timestep "
                f"{last}; {RECALIBRATE}"
            )

    def _check_choice(self, what: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise ProfileError(f"field {what!r} is {value!r}, expected one of {', '.join(known)}; {RECALIBRATE}")

    def _check_curves(self) -> None:
        for name, curve in self.curves.items():
            columns = curve.values.shape[1]
            if columns not in (1, self.samples):
                raise ProfileError(
                    f"curve {name!r} has {columns} columns for {self.samples} samples; expected that many, or 1"
                )
            if name in ("alpha_x", "alpha_t", "weight") and curve.values.min() < 0:
                raise ProfileError(
                    f"curve {name!r} has the negative value {curve.values.min()}, but it is a norm; {RECALIBRATE}"
                )
            if name == "rho" and abs(curve.values).max() > 1:
                worst = curve.values.flat[abs(curve.values).argmax()]
                raise ProfileError(f"curve 'rho' has the value {worst}, but it is a correlation; {RECALIBRATE}")

    def _check_tables(self) -> None:
        steps, published = self.num_steps, self.origin == "published"
        for name, table in self.tables.items():
            _check_finite(f"table {name!r}", table)
            kind, expected, meaning = name.partition(".")[0], table.shape, ""
            if name in _SQUARE_TABLES:
                expected, meaning = (steps, steps, self.samples), "(steps, steps, samples)"
            elif kind == _RATIO:
                rows = max(len(table), 1) if published and table.ndim else steps  # some sources have another length
                expected, meaning = (rows, self.samples), "(steps, samples)"
            elif kind in _CHANGES:
                if published:
                    raise ProfileError(f"table {name!r} is in a published profile; only a calibration measures it")
                expected, meaning = (steps - 1, self.samples), "(steps - 1, samples)"
            if table.shape != expected:
                raise ProfileError(
                    f"table {name!r} has shape {table.shape}, expected {meaning} = {expected}; {RECALIBRATE}"
                )
            if kind == _RATIO and not (table[0] == 1).all():
                raise ProfileError(f"table {name!r} has {table[0]} in row 0, expected 1: step 0 has no predecessor")
            if (kind == _RATIO and table.min() <= 0) or (kind in _CHANGES and table.size and table.min() < 0):
                raise ProfileError(f"table {name!r} has the value {table.min()}, but it is a ratio of sizes")

    @property
    def num_steps(self) -> int:
        """N, the number of calibrated steps; 0 where a published profile does not say."""
        return len(self.timesteps) or self.stated_steps or 0

    @property
    def magnitude_ratios(self) -> dict[str, Array]:
        """The tables ``magnitude_ratio.<stream>`` by stream, in order, ``magnitude_ratio`` by the empty name."""
        kinds = {name: name.partition(".") for name in sorted(self.tables)}
        return {stream: self.tables[name] for name, (kind, _, stream) in kinds.items() if kind == _RATIO}

    @property
    def alpha_x(self) -> Curve | None:
        """Sensitivity of the output to x, dimensionless; None if it was not calibrated."""
        return self.curves.get("alpha_x")

    @property
    def alpha_t(self) -> Curve | None:
        """Sensitivity of the output to t, RMS per unit of t; None if it was not calibrated."""
        return self.curves.get("alpha_t")

    @property
    def displacement(self) -> Array | None:
        """D(r, k), ``(N, N, S)``; None if it was not calibrated."""
        return self.tables.get("displacement")

    @property
    def change(self) -> Array | None:
        """E(r, k), ``(N, N, S)``; None if it was not calibrated."""
        return self.tables.get("change")

    def require(self, user: str, names: Iterable[str], kind: str = "policy") -> None:
        """Check that the profile has what a policy needs.

        Args:
            user: what needs them, named in the message.
            names: of curves or tables.
            kind: of the user, for the message.

        Raises:
            NeedsError: one is missing; says which, what there is, and how to calibrate.
        """
        known = {*self.curves, *self.tables}
        missing = [name for name in names if name not in known]
        if missing:
            raise NeedsError(
                f"{kind} {user!r} needs {', '.join(map(repr, missing))}, which profile {self.name!r} does not "
                f"have (it has: {', '.join(sorted(known)) or 'nothing'}); {RECALIBRATE}"
            )
