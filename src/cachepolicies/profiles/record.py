"""What every profile has, measured or published: its fields, their checks, and looking things up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import attrs
import numpy as np
from attrs import field, frozen

from cachepolicies.base.converters import as_dict, as_tuple, floats, integers
from cachepolicies.base.errors import NeedsError, ProfileError
from cachepolicies.profiles.checks import (
    check_choice,
    check_finite,
    check_name,
    check_noise_levels,
    plain_json,
    plain_settings,
    read_only,
)
from cachepolicies.profiles.format import DEFAULT_UNITS, PROFILE, RECALIBRATE, RETRY, Array, Origin
from cachepolicies.profiles.parts import Curve, ModelInfo, Polynomial, Recommendation, SchedulerInfo, Trials

_PREDICTION_TYPES = ("velocity", "noise", "x0", "v")
MOST_STEPS = 2000
"""Of a run: tables of the distances between every two steps grow with the square of their number."""

_TRAJECTORIES = ("model", "noised", "recorded")
_RATIO = "magnitude_ratio"

SQUARE_TABLES = ("displacement", "change")
"""The tables of distances between every two steps, one for every sample."""

CHANGE_TABLES = ("signal_change", "output_change")
"""What the names of the tables of changes from step to step begin with."""


def _same_tables(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def _sorted_names(values: Mapping[str, Any]) -> str:
    return str(sorted(values))


def _tables(values: Mapping[str, Any]) -> dict[str, Array]:
    return {str(name): read_only(array) for name, array in values.items()}


def _source(values: Mapping[str, Any]) -> dict[str, Any]:
    return plain_json("source", values)


def _optional_integers(values: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


@frozen
class ProfileRecord(ABC):
    """What `cachepolicies.profiles.Profile` and `cachepolicies.profiles.PublishedProfile` share; see there.

    Raises:
        ProfileError: a field is out of range, unsorted, not finite or has the wrong shape.
    """

    _origin: ClassVar[Origin]

    name: str
    model: ModelInfo
    prediction_type: str | None
    latent_shape: tuple[int, ...] | None = field(converter=_optional_integers)
    scheduler: SchedulerInfo | None
    timesteps: tuple[float, ...] = field(converter=floats)
    final_t: float | None = None
    dtype: str | None = "float32"
    guidance: float | None = None
    samples: int = 1
    seeds: tuple[int, ...] = field(default=(), converter=integers)
    trajectory: str = "model"
    evaluations: int = 0
    versions: Mapping[str, str] = field(factory=dict, converter=as_dict, hash=False)
    units: Mapping[str, str] = field(factory=lambda: dict(DEFAULT_UNITS), converter=as_dict, hash=False)
    created: str = field(default="", eq=False)
    notes: str = ""
    curves: Mapping[str, Curve] = field(factory=dict, converter=as_dict, hash=False, repr=_sorted_names)
    tables: Mapping[str, Array] = field(
        factory=dict, converter=_tables, eq=attrs.cmp_using(eq=_same_tables), hash=False, repr=_sorted_names
    )
    origin: Origin = field(init=False)
    stated_steps: int | None = None
    polynomials: Mapping[str, Polynomial] = field(factory=dict, converter=as_dict, hash=False)
    settings: Mapping[str, Mapping[str, Any]] = field(factory=dict, converter=plain_settings, hash=False)
    recommended: tuple[Recommendation, ...] = field(default=(), converter=as_tuple)
    source: Mapping[str, Any] = field(factory=dict, converter=_source, hash=False)
    irregularities: tuple[str, ...] = field(default=(), converter=as_tuple)
    trials: tuple[Trials, ...] = field(default=(), converter=as_tuple)
    version: int = PROFILE.version

    @origin.default
    def _origin_of_class(self) -> Origin:
        return self._origin

    def __attrs_post_init__(self) -> None:
        PROFILE.check_version(self.version)
        for what, text in (("name", self.name), ("model.class_name", self.model.class_name), ("dtype", self.dtype)):
            if text == "":
                raise ProfileError(f"field {what!r} is empty; {RECALIBRATE}")
            if text is not None:
                check_name(what, text)
        if len(self.timesteps) > MOST_STEPS:
            raise ProfileError(f"field 'timesteps' has {len(self.timesteps)} entries, at most {MOST_STEPS} are read")
        self._check_own()
        if self.prediction_type is not None:
            check_choice("prediction_type", self.prediction_type, _PREDICTION_TYPES)
        check_choice("trajectory", self.trajectory, _TRAJECTORIES)
        if self.timesteps:
            check_noise_levels("field 'timesteps'", self.timesteps)
        last = self.timesteps[-1] if self.timesteps else math.inf
        if self.final_t is not None and not (math.isfinite(self.final_t) and self.final_t <= last):
            raise ProfileError(
                f"field 'final_t' is {self.final_t}, expected a finite number of at most the last timestep "
                f"{last}; {RECALIBRATE}"
            )
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
        for tried in self.trials:
            if tried.budgets[-1] > self.num_steps:
                raise ProfileError(
                    f"trials field 'budgets' has {tried.budgets[-1]} evaluations of {self.num_steps} steps; {RETRY}"
                )

    @abstractmethod
    def _check_own(self) -> None:
        """Check the fields for which a measured and a published profile have rules of their own."""

    def _ratio_rows(self, table: Array) -> int:
        """Return how many rows a table of magnitude ratios must have."""
        return self.num_steps

    def _measures_changes(self) -> bool:
        """Return whether this kind of profile may have tables of changes."""
        return True

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
        steps = self.num_steps
        for name, table in self.tables.items():
            check_finite(f"table {name!r}", table)
            kind, expected, meaning = name.partition(".")[0], table.shape, ""
            if kind in CHANGE_TABLES and not self._measures_changes():
                raise ProfileError(f"table {name!r} is in a published profile; only a calibration measures it")
            if kind in SQUARE_TABLES and table.size and table.min() < 0:
                raise ProfileError(
                    f"table {name!r} has the negative value {table.min()}, but it is a norm; {RECALIBRATE}"
                )
            if name in SQUARE_TABLES:
                expected, meaning = (steps, steps, self.samples), "(steps, steps, samples)"
            elif kind == _RATIO:
                expected, meaning = (self._ratio_rows(table), self.samples), "(steps, samples)"
            elif kind in CHANGE_TABLES:
                expected, meaning = (steps - 1, self.samples), "(steps - 1, samples)"
            if table.shape != expected:
                raise ProfileError(
                    f"table {name!r} has shape {table.shape}, expected {meaning} = {expected}; {RECALIBRATE}"
                )
            if kind == _RATIO and not (table[0] == 1).all():
                raise ProfileError(f"table {name!r} has {table[0]} in row 0, expected 1: step 0 has no predecessor")
            if (kind == _RATIO and table.min() <= 0) or (kind in CHANGE_TABLES and table.size and table.min() < 0):
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
