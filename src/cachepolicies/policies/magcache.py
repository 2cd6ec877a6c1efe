"""MagCache: reuse while the residual, whose size is known to drift, has drifted little (arXiv 2506.09045)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies.base.settings import fraction, non_negative, non_negative_int, one_of
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within
from cachepolicies.policies._filling import as_numbers, as_streams, default_settings, fill, positions, streams
from cachepolicies.policies._ratios import Position, RatioCurve, check_positions, check_streams, curve_for, curves_of
from cachepolicies.policies.limits import Limits, Rounding, within_limits


class MagCacheReason(Reason):
    """Why a sample is evaluated or reused."""

    WITHIN = "accumulated drift within threshold"
    ABOVE = "accumulated drift above threshold"
    ZERO = "threshold is zero"
    NEVER = "position that is always evaluated"


_DEFAULTS: Mapping[str, Any] = {  # those of diffusers' MagCacheConfig
    "threshold": 0.06,
    "max_reuse": 3,
    "retention_ratio": 0.2,
    "never": (),
    "comparison": "<=",
    "retention_rounding": "half-up",
}


_STREAKS = 3
"""How many times as long as the mean streak of a budget the longest may be."""


@frozen(eq=False)
class MagCacheState:
    """What has been accumulated since each decision's last evaluation; but for the first, one entry a decision.

    Attributes:
        last: t and index of the last step, ``None`` before the first.
        ratio: size of the residual over that of the remembered one.
        error: sum of its deviations from 1 over the reused steps.
    """

    last: Position | None
    ratio: tuple[float, ...]
    error: tuple[float, ...]


@frozen
class MagCache(PolicySettings):
    """Reuse while the accumulated deviation of the residual's size from the remembered one is within a threshold.

    The ratios of the residual's size to that at the step before are calibrated once. Since the last evaluation they
    are multiplied, and ``|1 - product|`` is added up over the steps; a sample is reused iff the sum is within
    ``threshold`` and at most ``max_reuse`` reuses follow each other (arXiv 2506.09045, section 3.3; reference
    implementation Zehong-Ma/MagCache). Decisions need no tensor and no host synchronisation.

    A step is known by its t: a second evaluation at the same step applies no ratio, and a move over several steps the
    product of all. A branch is served by the stream of its name, else by ratios for all streams, else by ``cond``.

    A setting that is ``None`` comes from the profile's settings for ``"magcache"``, else it is the default below.

    Attributes:
        threshold: E, upper bound of the accumulated deviation, dimensionless; else 0.06. 0 never reuses, and is then
            bit for bit the bare model.
        max_reuse: K, largest number of consecutive reuses; else 3.
        retention_ratio: in this part of the run, from its start, nothing is reused; of the steps when the run was
            declared, else of t; else 0.2.
        ratios: entry k is the ratio of step k to step k - 1, entry 0 is 1; one sequence, or one for each stream by
            name. Else from the profile's tables ``magnitude_ratio`` or ``magnitude_ratio.<stream>``, their mean.
        never: entries of the table whose steps are always evaluated; else none.
        lookup: ``"level"`` reads the ratios by noise level on the profile's timesteps, so that any number of steps
            fits; ``"index"`` takes the entry nearest to the step's place in a declared run, as the authors do. Else
            ``"level"`` where the profile has ratios and timesteps.
        comparison: ``"<="`` (else this one) reuses at a sum that equals the threshold, ``"<"`` does not.
        retention_rounding: of ``retention_ratio * N``: ``"floor"``, ``"half-up"`` (else this one) or ``"ceil"``.
    """

    name: ClassVar[str] = "magcache"

    knob: ClassVar[str] = "threshold"

    threshold: float | None = field(default=None, validator=optional(non_negative))
    max_reuse: int | None = field(default=None, validator=optional(non_negative_int))
    retention_ratio: float | None = field(default=None, validator=optional(fraction))
    ratios: tuple[float, ...] | Mapping[str, tuple[float, ...]] | None = field(
        default=None, converter=as_streams, validator=optional(streams), hash=False
    )
    never: tuple[int, ...] | None = field(default=None, converter=as_numbers, validator=optional(positions))
    lookup: Literal["level", "index"] | None = field(default=None, validator=optional(one_of("level", "index")))
    comparison: Comparison | None = field(default=None, validator=optional(one_of(*COMPARISONS)))
    retention_rounding: Rounding | None = field(default=None, validator=optional(one_of("floor", "half-up", "ceil")))

    def for_budget(self, evaluations: int, num_steps: int) -> MagCache:
        """Return the settings with a retention window and a longest streak that leave room for the budget."""
        share = evaluations / num_steps
        window = _DEFAULTS["retention_ratio"] if self.retention_ratio is None else self.retention_ratio
        streak = _STREAKS * math.ceil(1.0 / share)
        return evolve(
            self,
            retention_ratio=min(window, share / 2) if self.retention_ratio is None else window,
            max_reuse=streak if self.max_reuse is None else self.max_reuse,
        )

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the rule with the settings that were left open taken from the profile, within the limits.

        Raises:
            NeedsError: there are no ratios, or no timesteps to read them by level.
            ProfileError: the profile's settings for this policy are not valid.
            SettingsError: the ratios do not fit the profile's timesteps, or ``never`` points outside of them.
        """
        profile = setup.profile
        settings = default_settings(profile, self.name)
        if self.ratios is not None:
            settings.pop("never", None)  # counts the entries of the profile's own table
            settings.pop("lookup", None)
        by_level = self.ratios is None and profile is not None and bool(profile.timesteps)
        filled: Any = fill(self, profile, settings, {**_DEFAULTS, "lookup": "level" if by_level else "index"})
        curves = curves_of(filled.ratios, filled.lookup, profile)
        check_positions(filled.never, curves)
        given = filled.ratios if isinstance(filled.ratios, tuple) else None
        rule = AccumulatedDrift(filled.threshold, curves, filled.never, filled.lookup, filled.comparison, given)
        limits = Limits(
            max_reuse=filled.max_reuse, retention=filled.retention_ratio, rounding=filled.retention_rounding
        )
        return within_limits(rule, limits)


@frozen
class AccumulatedDrift(CachePolicy):
    """The rule of `MagCache`, resolved. The retention window and the longest streak are limits around it.

    Attributes:
        threshold: of the accumulated deviation.
        curves: the ratios of every stream.
        never: entries of the table whose steps are always evaluated.
        lookup: how the ratios are read.
        comparison: of the sum with the threshold.
        single: the ratios, where they were given as one sequence.
    """

    name: ClassVar[str] = "magcache"

    threshold: float
    curves: Mapping[str, RatioCurve] = field(repr=lambda curves: str(sorted(curves)), hash=False)
    never: tuple[int, ...]
    lookup: Literal["level", "index"]
    comparison: Comparison
    single: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def needs(self) -> Needs:
        """The run length, where the ratios are read by index."""
        return Needs(run_length=self.lookup == "index")

    @property
    def reuses(self) -> bool:
        """Unless the threshold is zero."""
        return self.threshold != 0

    def start(self, run: RunInfo) -> MagCacheState:
        """Return a state with nothing accumulated.

        Raises:
            SettingsError: the ratios are those of two streams in turn.
        """
        check_streams(self.single, run.num_steps)
        return MagCacheState(None, (1.0,) * run.decisions, (0.0,) * run.decisions)

    def decide(self, step: Step, state: MagCacheState) -> Decision:
        """Accumulate the step's deviation and compare; reads no tensor."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, MagCacheReason.ZERO, count)
        if state.last is None:
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, count)
        if self._never_reuses(step):
            return Decision.same(False, MagCacheReason.NEVER, count)
        _, score = self._accumulate(step, state)
        reuse = tuple(within(s, self.threshold, self.comparison) for s in score)
        reasons = tuple(MagCacheReason.WITHIN if yes else MagCacheReason.ABOVE for yes in reuse)
        return Decision(reuse, reasons, score, (self.threshold,) * count, score_is_change=False)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: MagCacheState) -> MagCacheState:
        """Keep what the reused samples accumulated, start again for the others."""
        ratio, error = self._accumulate(step, state)
        keep = decision.reuse
        return MagCacheState(
            _position(step),
            tuple(r if k else 1.0 for r, k in zip(ratio, keep, strict=True)),
            tuple(e if k else 0.0 for e, k in zip(error, keep, strict=True)),
        )

    def _accumulate(self, step: Step, state: MagCacheState) -> tuple[tuple[float, ...], tuple[float, ...]]:
        now, before = _position(step), state.last
        if before is None or self._same_step(before, now):
            return state.ratio, state.error
        passed = curve_for(step.branch, self.curves).between(before, now, step.run.num_steps or 0)
        ratio = tuple(r * passed for r in state.ratio)
        return ratio, tuple(e + abs(1.0 - r) for e, r in zip(state.error, ratio, strict=True))

    def _same_step(self, before: Position, now: Position) -> bool:
        # by level up to float32's rounding of t
        return before[1] == now[1] if self.lookup == "index" else math.isclose(before[0], now[0], rel_tol=1e-6)

    def _never_reuses(self, step: Step) -> bool:
        if not self.never:
            return False
        curve = curve_for(step.branch, self.curves)
        return curve.position(_position(step), step.run.num_steps or 0) in self.never


def _position(step: Step) -> Position:
    return step.t, -1 if step.index is None else step.index
