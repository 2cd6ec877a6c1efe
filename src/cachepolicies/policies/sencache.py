"""SenCache: reuse while the calibrated sensitivities predict a small change (arXiv 2602.24208)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from attrs import Attribute, evolve, field, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies.base.budget import HALF
from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.base.settings import fraction, non_negative, non_negative_int, one_of, positive_int, refuse, shown
from cachepolicies.base.units import difference
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.score import Score, ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.substitute import order_of
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule, checked
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within
from cachepolicies.policies.limits import Limits, within_limits
from cachepolicies.profiles.missing import profile_is_missing
from cachepolicies.scores import as_score
from cachepolicies.tolerances.optimal import Optimal
from cachepolicies.tolerances.resolve import Tolerance, as_tolerance
from cachepolicies.tolerances.two_phase import EPSILON_START, START_FRACTION, TwoPhase

_MAX_REUSE = 3
_STREAKS = 3
"""How many times as long as the mean streak of a budget the longest may be."""


class SenCacheReason(Reason):
    """Why a sample is evaluated or reused."""

    WITHIN = "score within tolerance"
    ABOVE = "score above tolerance"
    ZERO = "tolerance is zero"


ScoreAt: TypeAlias = Callable[[Sequence[float], float, float], float]
"""`cachepolicies.scores.Score.at`."""

_PRESETS: Mapping[str, float] = {"paper": 0.1, "paper-fast": 0.2, "constant": 0.1}
"""Tolerances; of the first two behind a start with 0.01 (arXiv 2602.24208), of the last from the first step on."""

_PAPER = {"epsilon_start": EPSILON_START, "start_fraction": START_FRACTION}
"""What holds for these settings where ``epsilon`` is a number and they are not given."""


def _is_number(value: object) -> bool:
    return isinstance(value, (Real, np.bool_))


def _tolerance(instance: object, attribute: Attribute[Any], value: Any) -> None:
    """Check what is no number only as far as its kind: `as_tolerance` builds it, and says what is wrong with it."""
    if _is_number(value):
        non_negative(instance, attribute, value)
    elif value is None or (isinstance(value, str) and not value[:1].isalpha() and not value.endswith(".json")):
        refuse(instance, attribute, value, "a finite number >= 0")


@frozen(eq=False)
class SenCacheState:
    """The reference of every decision: where it was last evaluated.

    Attributes:
        score: of a reuse, from the refreshes, t and the displacement.
        tolerance: of this run, at a step.
        x: ``(B, ...)`` latent at each row's last refresh, ``None`` before the first.
        refreshes: noise levels of each decision's last refreshes, newest first, as many as the score looks at.
    """

    score: ScoreAt
    tolerance: ToleranceAt
    x: Tensor | None
    refreshes: tuple[tuple[float, ...], ...]


@frozen
class SenCache(PolicySettings):
    """Reuse while the sensitivities predict that the output has moved by no more than a tolerance.

    The score against the last refresh r is ``S = alpha_x(t_r) * norm(x - x_r) + alpha_t(t_r) * |t - t_r|``; a sample is
    reused iff ``S <= epsilon`` (arXiv 2602.24208, section 4 and Algorithm 1). Norms are RMS, one per deciding sample,
    so a tolerance means the same at every resolution. The sensitivities come from a profile, and are those at the
    refresh until the next one, as in the authors' code. Where the substitute extrapolates, the score is that of the
    extrapolation instead, in the same unit; see ``score``.

    At most ``max_reuse`` reuses follow each other. Algorithm 1 of the paper increments its counter before testing it,
    which allows one less; its text and the authors' code allow ``max_reuse``, and so does this.

    Attributes:
        epsilon: tolerance, RMS change of the output. Not given, it is solved for: the eps(t) with which half of the
            steps are evaluated, or as many as a budget says. A number, or what
            `cachepolicies.tolerances.as_tolerance` takes, such as ``"optimal:nfe=22"``, a plan, or a function of t. The
            number 0 never reuses, and is then bit for bit the bare model.
        max_reuse: largest number of consecutive reuses; the bound is first order, true for small moves only. Else 3
            where ``epsilon`` is a number or a function; a plan's tolerance goes with the plan's own limit, and
            ``optimal`` with none, since both weigh long streaks themselves.
        epsilon_start: stricter tolerance of the first part of the run, else 0.01 as in the paper; where ``epsilon`` is
            smaller still, that holds. Only where ``epsilon`` is a number: a schedule or a function is used as it is.
        start_fraction: length of that part, in steps when the run was declared, else in t; else 0.2 as in the paper.
        protect_first: this many steps at the start are always evaluated; needs a declared run.
        protect_last: this many steps at the end are always evaluated; needs a declared run.
        interpolation: how a score reads the profile between calibrated timesteps: ``"linear"`` (else this one), or
            ``"nearest"`` as in the authors' code.
        comparison: ``"<="`` as in the paper, or ``"<"`` as in the authors' code, which evaluates at a score that equals
            the tolerance.
        score: a registered name or spec, or a score. ``"substitute"``: the bound above for a substitute that holds, the
            calibrated error of the extrapolation for one that extrapolates. ``"bound"``: the bound whatever the
            substitute. ``"correlated"``: sharper than the bound, with the calibrated correlation of its two terms; for
            ``hold``.
        preset: ``"paper"``: the settings of arXiv 2602.24208, a tolerance of 0.1 behind a start with 0.01;
            ``"paper-fast"``: its faster one, 0.2; ``"constant"``: 0.1 from the first step on. With a budget the
            tolerance is solved for instead, and the start goes with it. Beside a preset neither ``epsilon``
            nor ``epsilon_start`` is given.
        max_nfe: hard budget of evaluations of each deciding sample in a run, branches at one t counted once. Once it
            is spent the sample is reused, whatever score, streak and protection say, and no tensor is read for it.
            The engine's own guards go before: where nothing is cached, or what is cached is not finite, it evaluates.
    """

    name: ClassVar[str] = "sencache"

    epsilon: Tolerance | None = field(default=None, validator=optional(_tolerance))
    max_reuse: int | None = field(default=None, validator=optional(non_negative_int))
    epsilon_start: float | None = field(default=None, validator=optional(non_negative))
    start_fraction: float | None = field(default=None, validator=optional(fraction))
    protect_first: int = field(default=0, validator=non_negative_int)
    protect_last: int = field(default=0, validator=non_negative_int)
    interpolation: Literal["linear", "nearest"] | None = field(
        default=None, validator=optional(one_of("linear", "nearest"))
    )
    comparison: Comparison = field(default="<=", validator=one_of(*COMPARISONS))
    score: str | ScoreSettings = "substitute"
    max_nfe: int | None = field(default=None, validator=optional(positive_int))
    preset: str | None = field(default=None, validator=optional(one_of(*_PRESETS)))

    @property
    def knob(self) -> str:
        """The tolerance, a number."""
        return "epsilon"

    def with_knob(self, value: float) -> SenCache:
        """Return the rule with another tolerance; behind a preset's start in the same proportion."""
        start = self.epsilon_start
        if self.preset is not None:
            proportion = 1.0 if self.preset == "constant" else EPSILON_START / _PRESETS[self.preset]
            start = value * proportion
        return evolve(self, epsilon=value, epsilon_start=start, preset=None)

    def for_budget(self, evaluations: int, num_steps: int) -> SenCache:
        """Return the rule with a longest streak, where none was given, that leaves room for the budget.

        Raises:
            SettingsError: a tolerance is given beside the budget.
        """
        if self.epsilon is not None:
            raise SettingsError(
                f"SenCache: epsilon={shown(self.epsilon)} beside a budget, which says what the tolerance is; give one "
                "of them"
            )
        if self.max_reuse is not None:
            return self
        return evolve(self, max_reuse=max(_MAX_REUSE, _STREAKS * math.ceil(num_steps / evaluations)))

    @property
    def is_solved_for(self) -> bool:
        """Whether the tolerance is left open, to be solved for a budget."""
        return self.epsilon is None and self.preset is None

    def __attrs_post_init__(self) -> None:
        if self.preset is not None and (self.epsilon is not None or self.epsilon_start is not None):
            raise SettingsError(
                f"SenCache: preset={self.preset!r} says epsilon and epsilon_start; leave them out, or leave out preset"
            )
        self.made_schedule(), self.made_score()  # what is wrong with them is said here

    def made_schedule(self) -> ToleranceSchedule:
        """Return what ``epsilon`` stands for; with a number, `TwoPhase`.

        Raises:
            SettingsError: a stricter start is given beside a schedule, or the schedule's settings are wrong.
        """
        given = {name: getattr(self, name) for name in _PAPER if getattr(self, name) is not None}
        epsilon = self.epsilon if self.preset is None else _PRESETS[self.preset]
        if epsilon is None:
            if given:
                raise SettingsError(
                    f"SenCache: {', '.join(f'{name}={value}' for name, value in given.items())} without epsilon: a "
                    "stricter start goes with a number"
                )
            return Optimal(fraction=HALF, weights="best")
        if _is_number(epsilon):
            start = {"epsilon_start": epsilon} if self.preset == "constant" else {}
            return TwoPhase(epsilon, **(_PAPER | start | given))
        if given:
            raise SettingsError(
                f"SenCache: {', '.join(f'{name}={value}' for name, value in given.items())} beside "
                f"epsilon={self.epsilon!r}: a stricter start goes with a number only; a schedule says itself what "
                "holds at the start"
            )
        return as_tolerance(epsilon)

    def made_score(self) -> ScoreSettings:
        """Return what ``score`` stands for; raises as `cachepolicies.scores.as_score`."""
        return as_score(self.score, interpolation=self.interpolation)

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the rule with its score and its tolerance for this set-up, within the limits.

        Raises:
            NeedsError: there is no profile, or it lacks what the score is made from.
            SettingsError: the tolerance was made for something else, for example a plan for another substitute.
            PolicyError: the substitute is of a kind whose error cannot be predicted; see `Extrapolated`.
        """
        schedule = self.made_schedule().resolve(setup)
        if setup.profile is None:
            needs = Needs(curves=("alpha_x", "alpha_t")) | schedule.needs
            raise profile_is_missing(self.name, needs.curves | needs.tables, setup.model)
        limits = Limits(
            protect_first=self.protect_first,
            protect_last=self.protect_last,
            max_reuse=schedule.max_reuse if self.max_reuse is None else self.max_reuse,
            max_nfe=self.max_nfe,
        )
        # With a budget it reuses in the end, and looks at the latent on the way there.
        zero = _is_number(self.epsilon) and self.epsilon == 0 and self.max_nfe is None
        rule = PredictedChange(
            self._resolved_score(setup), schedule, self.comparison, setup, limits.max_reuse, not zero
        )
        return within_limits(rule, limits)

    def _resolved_score(self, setup: Setup) -> Score:
        try:
            return self.made_score().resolve(setup)
        except NeedsError as error:
            extrapolates = (order_of(setup.substitute) or 0) > 0
            hint = '; score="bound" does with alpha_x and alpha_t' if extrapolates and self.score != "bound" else ""
            raise NeedsError(
                f"sencache, score={self.score!r} with substitute {setup.substitute.name!r}: {error}{hint}"
            ) from error


@frozen
class PredictedChange(CachePolicy):
    """The rule of `SenCache`, resolved. Protected ends, the longest streak and the budget are limits around it.

    Attributes:
        score: predicts the change of the output since the last refreshes.
        schedule: the tolerance it is compared with, resolved.
        comparison: of the two.
        setup: what the schedule is started with.
        max_reuse: largest number of consecutive reuses around it, ``None`` for no limit; the schedule is told.
        reuses: whether the tolerance is anything but the number zero, or a budget that ends in reuse is laid around it.
    """

    name: ClassVar[str] = "sencache"

    score: Score
    schedule: ToleranceSchedule
    comparison: Comparison
    setup: Setup = field(repr=False)
    max_reuse: int | None = field(default=None, repr=False)
    reuses: bool = field(default=True, repr=False)

    @property
    def needs(self) -> Needs:
        """What score and schedule need."""
        return self.score.needs | self.schedule.needs

    def start(self, run: RunInfo) -> SenCacheState:
        """Return a state without a reference.

        Raises:
            NeedsError: the run has not what the tolerance schedule needs of it.
            SettingsError: the tolerance schedule cannot be met on this run.
        """
        longest = sys.maxsize if self.max_reuse is None else self.max_reuse
        tolerance = self.schedule.start(run, self.setup, self.score, longest)
        subject = f"sencache: tolerance schedule {self.schedule.name!r} "
        return SenCacheState(
            self.score.at, lambda step: checked(tolerance(step), step, subject), None, ((),) * run.decisions
        )

    def decide(self, step: Step, state: SenCacheState) -> Decision:
        """Compare the score of every sample with the tolerance. One host synchronisation; none before a reference."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, SenCacheReason.ZERO, count)
        epsilon = state.tolerance(step)
        if state.x is None:
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, count)
        moved = step.rms(difference(step.x, state.x))
        score = tuple(state.score(seen, step.t, far) for seen, far in zip(state.refreshes, moved, strict=True))
        reasons = tuple(self._reason(s, epsilon) for s in score)
        reuse = tuple(reason is SenCacheReason.WITHIN for reason in reasons)
        return Decision(reuse, reasons, score, (epsilon,) * count)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: SenCacheState) -> SenCacheState:
        """Move the reference of the evaluated samples here."""
        reuse = decision.reuse
        if not self.reuses or all(reuse):
            return state
        kept = 1 + self.score.order
        return SenCacheState(
            state.score,
            state.tolerance,
            step.merge(state.x, step.x, reuse),
            tuple(old if again else (step.t, *old)[:kept] for old, again in zip(state.refreshes, reuse, strict=True)),
        )

    def _reason(self, score: float, epsilon: float) -> SenCacheReason:
        if epsilon == 0:
            return SenCacheReason.ZERO
        # not within also where the score is not a number
        return SenCacheReason.WITHIN if within(score, epsilon, self.comparison) else SenCacheReason.ABOVE
