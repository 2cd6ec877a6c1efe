"""What a plan holds: the steps of a run to refresh, what was assumed and what is predicted; it checks itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NoReturn

from attrs import field, frozen

from cachepolicies.base.converters import as_dict, as_tuple, floats, integers
from cachepolicies.base.documents import DocumentFormat
from cachepolicies.base.errors import CachePoliciesError
from cachepolicies.planning.expectation import Expectation
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.profiles.schema import SchedulerInfo

REPLAN = "plan again with `cachepolicies plan` or cachepolicies.planning.plan"
"""The remedy that most messages end with."""

TARGET_UNITS = ("objective", "dB", "rms")
"""What a target can be: the objective's own prediction, or the expected PSNR or RMS of new samples."""

_SLACK = 1e-6
"""Relative difference that is allowed between a stored number and the same recomputed from the others."""


class PlanError(CachePoliciesError, ValueError):
    """A plan cannot be read or is not valid."""


PLAN = DocumentFormat(
    noun="plan", name="cachepolicies-plan", version=2, older=(1,), error=PlanError, again="plan again", remedy=REPLAN
)
"""The format of plans as files."""


def _refuse_field(what: str, value: object, expected: str) -> NoReturn:
    raise PlanError(f"field {what!r} is {value!r}, expected {expected}; {REPLAN}")


@frozen
class PlanSource:
    """The profile that a plan was made from.

    Attributes:
        profile: its name.
        model_class: class of the calibrated network; a plan serves this class only.
        scheduler: the scheduler that it was planned for; the profile's own unless another was given.
        guidance: guidance scale in the calibrated denoiser, None without guidance.
        num_steps: steps that were calibrated; the plan may be for another number.
        samples: number of calibration samples.
        versions: distribution name to version, of the calibration.
        created: when it was calibrated, UTC time in ISO 8601.
    """

    profile: str
    model_class: str
    scheduler: SchedulerInfo | None
    guidance: float | None
    num_steps: int
    samples: int
    versions: Mapping[str, str] = field(factory=dict, converter=as_dict, hash=False)
    created: str = ""


@frozen
class PlanPoint:
    """One point of the trade-off curve: the best that a budget allows.

    Attributes:
        budget: largest number of refreshes that was allowed.
        predicted: the objective's value.
        refreshes: steps that are refreshed, increasing; at most ``budget``.
        expected: what to expect on new samples, None where no trials say it.
    """

    budget: int
    predicted: float
    refreshes: tuple[int, ...] = field(converter=integers)
    expected: Expectation | None = None


@frozen
class PlanFields:
    """The fields of a `cachepolicies.planning.Plan` and the checks that they fit together.

    Raises:
        PlanError: a field is out of range or does not fit the others.
    """

    source: PlanSource
    timesteps: tuple[float, ...] = field(converter=floats)
    substitute: str
    objective: str
    errors: str
    weights_kind: str
    method: str
    max_reuse: int | None
    always: tuple[int, ...] = field(converter=integers)
    budget: int
    target: float | None
    refreshes: tuple[int, ...] = field(converter=integers)
    predicted: float
    weights: tuple[float, ...] = field(converter=floats, repr=False)
    step_errors: tuple[float, ...] = field(converter=floats, repr=False)
    curve: tuple[PlanPoint, ...] = field(converter=as_tuple, repr=False)
    tolerance: ToleranceCurve | None = field(default=None, repr=False)
    no_tolerance: str | None = None
    versions: Mapping[str, str] = field(factory=dict, converter=as_dict, hash=False, repr=False)
    created: str = field(default="", eq=False)
    notes: str = ""
    target_unit: str = "objective"
    version: int = PLAN.version

    def __attrs_post_init__(self) -> None:
        PLAN.check_version(self.version)
        for what in ("substitute", "objective"):
            if not getattr(self, what):
                _refuse_field(what, getattr(self, what), "a name")
        for what, known in (
            ("errors", ("measured", "predicted")),
            ("weights_kind", ("geometric", "measured", "bound", "uniform")),
            ("method", ("shortest-path", "milp")),
            ("target_unit", TARGET_UNITS),
        ):
            if getattr(self, what) not in known:
                _refuse_field(what, getattr(self, what), f"one of {', '.join(known)}")
        self._check_timesteps()
        self._check_values()
        if not 1 <= self.budget <= self.num_steps:
            _refuse_field("budget", self.budget, f"an integer from 1 to the number of steps {self.num_steps}")
        if self.max_reuse is not None and self.max_reuse < 0:
            _refuse_field("max_reuse", self.max_reuse, "an integer >= 0, or None")
        if list(self.always) != sorted({*self.always}) or any(not 0 <= k < self.num_steps for k in self.always):
            _refuse_field("always", self.always, f"increasing steps from 0 to {self.num_steps - 1}")
        self._check_refreshes("refreshes", self.refreshes, self.budget)
        self._check_curve()
        reused = set(range(self.num_steps)) - set(self.refreshes)
        for step in self.refreshes:
            if self.step_errors[step] != 0:
                _refuse_field(f"step_errors[{step}]", self.step_errors[step], "0, because the step is refreshed")
        if not reused and self.predicted != 0:
            _refuse_field("predicted", self.predicted, "0, because every step is refreshed")
        if (self.tolerance is None) == (self.no_tolerance is None):
            raise PlanError(
                "exactly one of the fields 'tolerance' and 'no_tolerance' (the reason why there is none) is None, got "
                f"{self.tolerance!r} and {self.no_tolerance!r}; {REPLAN}"
            )

    def _check_timesteps(self) -> None:
        if not self.timesteps:
            _refuse_field("timesteps", self.timesteps, "one value per step")
        for index, t in enumerate(self.timesteps):
            if not math.isfinite(t):
                _refuse_field(f"timesteps[{index}]", t, "a finite number")
        for before, after in pairwise(self.timesteps):
            if after >= before:
                raise PlanError(
                    f"field 'timesteps' must be strictly decreasing, but {after} follows {before}; {REPLAN}"
                )

    def _check_values(self) -> None:
        for what in ("weights", "step_errors"):
            values = getattr(self, what)
            if len(values) != self.num_steps:
                raise PlanError(f"field {what!r} has {len(values)} entries for {self.num_steps} steps; {REPLAN}")
            for index, value in enumerate(values):
                if not (math.isfinite(value) and value >= 0):
                    _refuse_field(f"{what}[{index}]", value, "a finite number >= 0")
        for what in ("predicted", "target"):
            value = getattr(self, what)
            if value is not None and not (math.isfinite(value) and value >= 0):
                _refuse_field(what, value, "a finite number >= 0")

    def _check_refreshes(self, what: str, refreshes: tuple[int, ...], budget: int) -> None:
        steps = self.num_steps
        if not refreshes or refreshes[0] != 0 or any(b <= a for a, b in pairwise(refreshes)) or refreshes[-1] >= steps:
            _refuse_field(what, refreshes, f"increasing steps below {steps}, 0 first")
        if len(refreshes) > budget:
            raise PlanError(f"field {what!r} has {len(refreshes)} refreshes, more than the budget {budget}; {REPLAN}")
        if missing := sorted(set(self.always) - set(refreshes)):
            raise PlanError(f"field {what!r} lacks step {missing[0]}, which is one of 'always' {self.always}; {REPLAN}")
        longest = max(after - before - 1 for before, after in pairwise((*refreshes, steps)))
        if self.max_reuse is not None and longest > self.max_reuse:
            raise PlanError(
                f"field {what!r} has {longest} reuses in a row, more than 'max_reuse' {self.max_reuse}; {REPLAN}"
            )

    def _check_curve(self) -> None:
        if not any(point.budget == self.budget for point in self.curve):
            _refuse_field("curve", [point.budget for point in self.curve], f"a point for the budget {self.budget}")
        for index, point in enumerate(self.curve):
            self._check_refreshes(f"curve[{index}].refreshes", point.refreshes, point.budget)
            if not (math.isfinite(point.predicted) and point.predicted >= 0):
                _refuse_field(f"curve[{index}].predicted", point.predicted, "a finite number >= 0")
            if point.budget == self.budget and (point.refreshes, point.predicted) != (self.refreshes, self.predicted):
                raise PlanError(f"field 'curve[{index}]' differs from 'refreshes' and 'predicted'; {REPLAN}")
        for before, after in pairwise(self.curve):
            if after.budget <= before.budget:
                _refuse_field("curve", [point.budget for point in self.curve], "increasing budgets")
            if after.predicted > before.predicted * (1 + _SLACK):
                raise PlanError(
                    f"field 'curve' predicts {after.predicted} with {after.budget} refreshes, more than "
                    f"{before.predicted} with {before.budget}; {REPLAN}"
                )

    @property
    def num_steps(self) -> int:
        """N, the number of steps of the planned run."""
        return len(self.timesteps)

    @property
    def evaluations(self) -> int:
        """The number of refreshes; below the budget where more would not help."""
        return len(self.refreshes)

    @property
    def expected(self) -> Expectation | None:
        """What to expect on new samples; None where the profile has no trials of such plans."""
        return next(point.expected for point in self.curve if point.budget == self.budget)

    @property
    def total(self) -> float:
        """Sum of the weighted errors over the reused steps."""
        return math.fsum(w * e for w, e in zip(self.weights, self.step_errors, strict=True))

    @property
    def largest(self) -> float:
        """The largest weighted error of a reused step."""
        return max(w * e for w, e in zip(self.weights, self.step_errors, strict=True))
