"""MagCache: reuse while the residual, whose size is known to drift, has drifted little (arXiv 2506.09045)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies._errors import NeedsError
from cachepolicies._policy import Decision, Needs
from cachepolicies._reasons import NOTHING_TO_REUSE
from cachepolicies._settings import fraction, non_negative, non_negative_int, one_of
from cachepolicies._step import RunInfo, Step
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within
from cachepolicies.policies._filling import as_numbers, as_streams, default_settings, fill, positions, streams
from cachepolicies.policies._ratios import Place, RatioCurve, check_positions, check_streams, curve_for, curves_of

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

WITHIN = "accumulated drift within threshold"
ABOVE = "accumulated drift above threshold"
STREAK = "max_reuse reached"
ZERO = "threshold or max_reuse is zero"
START = "first part of the run"
NEVER = "position that is always evaluated"

_DEFAULTS: Mapping[str, Any] = {  # those of diffusers' MagCacheConfig
    "threshold": 0.06,
    "max_reuse": 3,
    "retention_ratio": 0.2,
    "never": (),
    "comparison": "<=",
    "retention_rounding": "half-up",
}


_WHOLE: Mapping[str, Callable[[float], int]] = {
    "floor": math.floor,
    "half-up": lambda steps: math.floor(steps + 0.5),
    "ceil": math.ceil,
}


@frozen(eq=False)
class MagCacheState:
    """What has been accumulated since each decision's last evaluation; but for the first two, one entry a decision.

    Attributes:
        curves: the ratios of every stream.
        place: t and index of the last step, ``None`` before the first.
        ratio: size of the residual over that of the remembered one.
        error: sum of its deviations from 1 over the reused steps.
        reused: consecutive reuses.
    """

    curves: Mapping[str, RatioCurve]
    place: Place | None
    ratio: tuple[float, ...]
    error: tuple[float, ...]
    reused: tuple[int, ...]


@frozen
class MagCache:
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

    threshold: float | None = field(default=None, validator=optional(non_negative))
    max_reuse: int | None = field(default=None, validator=optional(non_negative_int))
    retention_ratio: float | None = field(default=None, validator=optional(fraction))
    ratios: tuple[float, ...] | Mapping[str, tuple[float, ...]] | None = field(
        default=None, converter=as_streams, validator=optional(streams), hash=False
    )
    never: tuple[int, ...] | None = field(default=None, converter=as_numbers, validator=optional(positions))
    lookup: Literal["level", "index"] | None = field(default=None, validator=optional(one_of("level", "index")))
    comparison: Comparison | None = field(default=None, validator=optional(one_of(*COMPARISONS)))
    retention_rounding: Literal["floor", "half-up", "ceil"] | None = field(
        default=None, validator=optional(one_of(*_WHOLE))
    )

    @property
    def needs(self) -> Needs:
        """The run length, where the ratios are read by index."""
        return Needs(run_length=self.lookup == "index")

    @property
    def reuses(self) -> bool:
        """Unless the threshold or the number of reuses is zero."""
        return self.threshold != 0 and self.max_reuse != 0

    def bind(self, profile: Profile | None) -> MagCache:
        """Return the policy with the settings that were left open taken from the profile.

        Raises:
            NeedsError: there are no ratios, or no timesteps to read them by level.
            ProfileError: the profile's settings for this policy are not valid.
            SettingsError: the ratios do not fit the profile's timesteps, or ``never`` points outside of them.
        """
        settings = default_settings(profile, self.name)
        if self.ratios is not None:
            settings.pop("never", None)  # counts the entries of the profile's own table
            settings.pop("lookup", None)
        by_level = self.ratios is None and profile is not None and bool(profile.timesteps)
        bound = fill(self, profile, settings, {**_DEFAULTS, "lookup": "level" if by_level else "index"})
        check_positions(bound.never or (), curves_of(bound.ratios, bound.lookup or "index", profile))
        return bound

    def start(self, run: RunInfo) -> MagCacheState:
        """Return a state with nothing accumulated.

        Raises:
            NeedsError: the policy was not bound.
            SettingsError: the ratios are those of two streams in turn.
        """
        if self.lookup is None or None in (self.threshold, self.max_reuse, self.retention_ratio):
            raise NeedsError("magcache was not bound: its open settings are taken from a profile by bind")
        check_streams(self.ratios, run.num_steps)
        count = run.decisions
        curves = curves_of(self.ratios, self.lookup, run.profile)
        return MagCacheState(curves, None, (1.0,) * count, (0.0,) * count, (0,) * count)

    def decide(self, step: Step, state: MagCacheState) -> Decision:
        """Accumulate the step's deviation and compare; reads no tensor."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, ZERO, count)
        certain = NOTHING_TO_REUSE if state.place is None else self._protected(step, state)
        if certain:
            return Decision.same(False, certain, count)
        _, score = self._accumulate(step, state)
        reasons = tuple(self._reason(s, reused) for s, reused in zip(score, state.reused, strict=True))
        return Decision(
            tuple(reason == WITHIN for reason in reasons),
            reasons,
            score,
            (self.threshold or 0.0,) * count,
            score_is_change=False,
        )

    def observe(self, step: Step, decision: Decision, output: Tensor, state: MagCacheState) -> MagCacheState:
        """Keep what the reused samples accumulated, start again for the others."""
        ratio, error = self._accumulate(step, state)
        keep = decision.reuse
        return evolve(
            state,
            place=_place(step),
            ratio=tuple(r if k else 1.0 for r, k in zip(ratio, keep, strict=True)),
            error=tuple(e if k else 0.0 for e, k in zip(error, keep, strict=True)),
            reused=tuple(m + 1 if k else 0 for m, k in zip(state.reused, keep, strict=True)),
        )

    def _accumulate(self, step: Step, state: MagCacheState) -> tuple[tuple[float, ...], tuple[float, ...]]:
        now, before = _place(step), state.place
        if before is None or self._same_step(before, now):
            return state.ratio, state.error
        passed = curve_for(step.branch, state.curves).between(before, now, step.run.num_steps or 0)
        ratio = tuple(r * passed for r in state.ratio)
        return ratio, tuple(e + abs(1.0 - r) for e, r in zip(state.error, ratio, strict=True))

    def _same_step(self, before: Place, now: Place) -> bool:
        # by level up to float32's rounding of t
        return before[1] == now[1] if self.lookup == "index" else math.isclose(before[0], now[0], rel_tol=1e-6)

    def _protected(self, step: Step, state: MagCacheState) -> str | None:
        share, steps = self.retention_ratio or 0.0, step.run.num_steps
        whole = _WHOLE[self.retention_rounding or "half-up"]
        if step.run.in_first(share, step.t) if steps is None else (step.index or 0) < whole(share * steps):
            return START
        if self.never and curve_for(step.branch, state.curves).position(_place(step), steps or 0) in self.never:
            return NEVER
        return None

    def _reason(self, error: float, reused: int) -> str:
        if not within(error, self.threshold or 0.0, self.comparison or "<="):
            return ABOVE
        return WITHIN if reused < (self.max_reuse or 0) else STREAK


def _place(step: Step) -> Place:
    return step.t, -1 if step.index is None else step.index
