"""Optimal: the tolerance in closed form, for a budget of evaluations or for a final error."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias
from weakref import WeakKeyDictionary

from attrs import field, frozen
from attrs.validators import optional

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.settings import one_of, plain, positive
from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule
from cachepolicies.planning.weights import CURVES_OF

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score
    from cachepolicies.planning.tolerance_curve import ToleranceCurve
    from cachepolicies.planning.weights import WeightKind

_Curves: TypeAlias = "MutableMapping[Any, dict[tuple[tuple[float, ...], int], ToleranceCurve]]"


@frozen
class Optimal(ToleranceSchedule):
    """``eps(t) = c * sqrt(s(t) / w(t))``, and its form for higher orders, with c from a budget or a final error.

    s is the score over one step and w what an error at the step does to the sample; the derivation is in
    `cachepolicies.planning.continuous.solve`. c is found when a run begins, for the run's own timesteps, on the
    displacements of the calibration runs, and remembered; step counts that were never calibrated are interpolated.

    What else the policy does (protected steps, a hard budget) is not known here and comes on top.

    Attributes:
        nfe: mean number of evaluations of a run, at least 1; or
        fraction: of the steps of a run that are evaluated in the mean, in (0, 1]; or
        target: the predicted error of the sample, RMS where the weights are measured.
        weights: ``"measured"``, ``"bound"`` or ``"uniform"``; see `cachepolicies.planning.weights.step_weights`.
            ``"best"`` is ``"measured"`` where the profile has weights, else ``"uniform"``.
    """

    name: ClassVar[str] = "optimal"

    nfe: float | None = field(default=None, converter=plain, validator=optional(positive))
    target: float | None = field(default=None, converter=plain, validator=optional(positive))
    fraction: float | None = field(default=None, converter=plain, validator=optional(positive))
    weights: WeightKind | Literal["best"] = field(default="measured", validator=one_of(*CURVES_OF, "best"))
    # By score, which belongs to one profile and substitute; it goes when the denoiser goes.
    _curves: _Curves = field(factory=WeakKeyDictionary, init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if sum(given is not None for given in (self.nfe, self.target, self.fraction)) != 1:
            raise SettingsError(
                f"Optimal: give either nfe (evaluations a run), fraction (of the steps) or target (error of the "
                f"sample), got nfe={self.nfe!r}, fraction={self.fraction!r} and target={self.target!r}"
            )
        if self.fraction is not None and self.fraction > 1:
            raise SettingsError(f"Optimal: fraction must be at most 1, got {self.fraction!r}")
        if self.nfe is not None and self.nfe < 1:
            raise SettingsError(f"Optimal: nfe must be at least 1, got {self.nfe!r}")

    @property
    def needs(self) -> Needs:
        """The displacements, what the weights are made from, and the run's timesteps."""
        curves = () if self.weights == "best" else CURVES_OF[self.weights]
        return Needs(curves=curves, tables=("displacement",), run_length=True)

    @property
    def max_reuse(self) -> int | None:
        """None: long streaks are weighed by what they cost."""
        return None

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the tolerance of a run; the first run with these timesteps takes some hundredths of a second.

        Raises:
            NeedsError: the run's timesteps are not known, or there is no profile.
            SettingsError: the sampler evaluates twice a step, ``nfe`` is above the number of steps or below what
                ``max_reuse`` allows, ``target`` is out of reach, or no weight is above zero.
        """
        if run.timesteps is None:
            raise NeedsError(
                "the tolerance schedule 'optimal' needs the run's timesteps: declare the run, "
                "`with denoiser.run(timesteps=...)`"
            )
        curve = self.curve(run.timesteps, setup, score, max_reuse)

        def tolerance(step: Step) -> float:
            return curve.at(step.t)

        return tolerance

    def curve(self, timesteps: tuple[float, ...], setup: Setup, score: Score, max_reuse: int) -> ToleranceCurve:
        """Return eps(t) of a run with these timesteps; raises as `start` does."""
        known = self._curves.setdefault(score, {})
        key = (timesteps, max_reuse)
        if key not in known:
            known[key] = self._solve(timesteps, setup, score, max_reuse)
        return known[key]

    def _solve(self, timesteps: tuple[float, ...], setup: Setup, score: Score, max_reuse: int) -> ToleranceCurve:
        from cachepolicies.planning import continuous
        from cachepolicies.planning.weights import step_weights

        if setup.profile is None:
            raise NeedsError(
                "the tolerance schedule 'optimal' needs a profile; make one with `cachepolicies calibrate`"
            )
        scheduler = setup.scheduler
        if scheduler is not None and scheduler.evaluations_per_step != 1:
            raise SettingsError(
                f"tolerance schedule 'optimal' counts one evaluation a step, but scheduler {scheduler.name!r} makes "
                f"{scheduler.evaluations_per_step}; use a constant or two-phase tolerance with it"
            )
        kind: WeightKind = "measured" if "weight" in setup.profile.curves else "uniform"
        if self.weights != "best":
            kind = self.weights
        weights = step_weights(setup.profile, kind, timesteps, scheduler)
        nfe = self.nfe if self.fraction is None else max(1.0, self.fraction * len(timesteps))
        return continuous.tolerance(
            setup.profile, score, weights, timesteps, nfe=nfe, target=self.target, max_reuse=max_reuse
        )
