"""SenCache: reuse while the calibrated sensitivities predict a small change (arXiv 2602.24208)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from attrs import Attribute, evolve, field, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies._errors import NeedsError, SettingsError
from cachepolicies._policy import Decision, Needs
from cachepolicies._reasons import NOTHING_TO_REUSE
from cachepolicies._settings import fraction, non_negative, non_negative_int, one_of, positive_int, refuse
from cachepolicies._setup import Setup
from cachepolicies._step import RunInfo, Step
from cachepolicies._substitute import Extrapolation
from cachepolicies._units import difference
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within
from cachepolicies.scores import SCORES, Score, ScoreKind, score_of
from cachepolicies.substitutes.hold import Hold
from cachepolicies.tolerances._resolve import Tolerance, as_tolerance
from cachepolicies.tolerances.base import ChecksSetup, LimitsReuse, ToleranceAt, ToleranceSchedule, checked
from cachepolicies.tolerances.two_phase import EPSILON, EPSILON_START, START_FRACTION, TwoPhase

WITHIN = "score within tolerance"
ABOVE = "score above tolerance"
STREAK = "max_reuse reached"
ZERO = "tolerance is zero"
FIRST = "protected first step"
LAST = "protected last step"
SPENT = "budget spent"

ScoreAt: TypeAlias = Callable[[Sequence[float], float, float], float]
"""`cachepolicies.scores.Score.at`."""

MAX_REUSE = 3
"""Consecutive reuses where neither ``max_reuse`` nor the tolerance schedule says how many."""

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
    """The reference of every decision: where it was last evaluated, and how often it was reused since.

    Attributes:
        score: of a reuse, from the refreshes, t and the displacement.
        tolerance: of this run, at a step.
        x: ``(B, ...)`` latent at each row's last refresh, ``None`` before the first.
        refreshes: noise levels of each decision's last refreshes, newest first, as many as the score looks at.
        reused: consecutive reuses since.
        evaluated: evaluations of each decision in this run.
    """

    score: ScoreAt
    tolerance: ToleranceAt
    x: Tensor | None
    refreshes: tuple[tuple[float, ...], ...]
    reused: tuple[int, ...]
    evaluated: tuple[int, ...]


@frozen
class SenCache:
    """Reuse while the sensitivities predict that the output has moved by no more than a tolerance.

    The score against the last refresh r is ``S = alpha_x(t_r) * norm(x - x_r) + alpha_t(t_r) * |t - t_r|``; a sample is
    reused iff ``S <= epsilon`` (arXiv 2602.24208, section 4 and Algorithm 1). Norms are RMS, one per deciding sample,
    so a tolerance means the same at every resolution. The sensitivities come from a profile, and are those at the
    refresh until the next one, as in the authors' code. Where the substitute extrapolates, the score is that of the
    extrapolation instead, in the same unit; see ``score``.

    At most ``max_reuse`` reuses follow each other. Algorithm 1 of the paper increments its counter before testing it,
    which allows one less; its text and the authors' code allow ``max_reuse``, and so does this.

    Attributes:
        epsilon: tolerance, RMS change of the output: a number, or what `cachepolicies.tolerances.as_tolerance` takes,
            such as ``"optimal:nfe=22"``, a plan, or a function of t. The number 0 never reuses, and is then bit for
            bit the bare model.
        max_reuse: largest number of consecutive reuses; the bound is first order, true for small moves only. Else 3
            where ``epsilon`` is a number or a function; a plan's tolerance goes with the plan's own limit, and
            ``optimal`` with none, since both weigh long streaks themselves.
        epsilon_start: stricter tolerance of the first part of the run, else 0.01 as in the paper; where ``epsilon`` is
            smaller still, that holds. Only where ``epsilon`` is a number: a schedule or a function is used as it is.
        start_fraction: length of that part, in steps when the run was declared, else in t; else 0.2 as in the paper.
        protect_first: this many steps at the start are always evaluated; needs a declared run.
        protect_last: this many steps at the end are always evaluated; needs a declared run.
        interpolation: how the profile is read between calibrated timesteps: ``"linear"``, or ``"nearest"`` as in the
            authors' code.
        comparison: ``"<="`` as in the paper, or ``"<"`` as in the authors' code, which evaluates at a score that equals
            the tolerance.
        score: ``"substitute"``: the bound above for a substitute that holds, the calibrated error of the extrapolation
            for one that extrapolates. ``"bound"``: the bound whatever the substitute. ``"correlated"``: sharper than
            the bound, with the calibrated correlation of its two terms; for ``hold``.
        max_nfe: hard budget of evaluations of each deciding sample in a run, branches at one t counted once. Once it
            is spent the sample is reused, whatever score, streak and protection say, and no tensor is read for it.
            The engine's own guards go before: where nothing is cached, or what is cached is not finite, it evaluates.
    """

    name: ClassVar[str] = "sencache"

    epsilon: Tolerance = field(default=EPSILON, validator=_tolerance)
    max_reuse: int | None = field(default=None, validator=optional(non_negative_int))
    epsilon_start: float | None = field(default=None, validator=optional(non_negative))
    start_fraction: float | None = field(default=None, validator=optional(fraction))
    protect_first: int = field(default=0, validator=non_negative_int)
    protect_last: int = field(default=0, validator=non_negative_int)
    interpolation: Literal["linear", "nearest"] = field(default="linear", validator=one_of("linear", "nearest"))
    comparison: Comparison = field(default="<=", validator=one_of(*COMPARISONS))
    score: ScoreKind = field(default="substitute", validator=one_of(*SCORES))
    max_nfe: int | None = field(default=None, validator=optional(positive_int))
    _schedule: ToleranceSchedule = field(init=False, repr=False, eq=False)
    _reuses: bool = field(init=False, repr=False, eq=False)  # asked at every call
    _setup: Setup | None = field(init=False, default=None, repr=False, eq=False)
    _score: Score | None = field(init=False, default=None, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_schedule", self._make_schedule())
        zero = (_is_number(self.epsilon) and self.epsilon == 0) or self.streak == 0
        object.__setattr__(self, "_reuses", self.max_nfe is not None or not zero)

    def _make_schedule(self) -> ToleranceSchedule:
        given = {name: getattr(self, name) for name in _PAPER if getattr(self, name) is not None}
        if _is_number(self.epsilon):
            return TwoPhase(self.epsilon, **(_PAPER | given))
        if given:
            raise SettingsError(
                f"SenCache: {', '.join(f'{name}={value}' for name, value in given.items())} beside "
                f"epsilon={self.epsilon!r}: a stricter start goes with a number only; a schedule says itself what "
                "holds at the start"
            )
        return as_tolerance(self.epsilon)

    @property
    def schedule(self) -> ToleranceSchedule:
        """What ``epsilon`` stands for; with a number, `TwoPhase`."""
        return self._schedule

    @property
    def streak(self) -> int:
        """The largest number of consecutive reuses that holds: ``max_reuse``, or what goes with ``epsilon``."""
        if self.max_reuse is not None:
            return self.max_reuse
        if not isinstance(self._schedule, LimitsReuse):
            return MAX_REUSE
        return sys.maxsize if self._schedule.max_reuse is None else self._schedule.max_reuse

    @property
    def needs(self) -> Needs:
        """What score and schedule need; the run length to protect steps."""
        score = Needs(curves=("alpha_x", "alpha_t")) if self._score is None else self._score.needs
        schedule = self._schedule.needs
        return Needs(
            curves=score.curves | schedule.curves,
            tables=score.tables | schedule.tables,
            run_length=bool(self.protect_first or self.protect_last) or schedule.run_length,
            signals=schedule.signals,
        )

    @property
    def reuses(self) -> bool:
        """Unless the tolerance is the number zero or no reuse is allowed; with ``max_nfe`` in any case."""
        return self._reuses

    def suit(self, setup: Setup) -> SenCache:
        """Return the policy with the score for this profile and substitute; one that has it keeps it.

        Raises:
            NeedsError: the profile lacks what the score is made from.
            SettingsError: the tolerance was made for something else, for example a plan for another substitute.
            PolicyError: the substitute is of a kind whose error cannot be predicted; see `Extrapolated`.
        """
        suited, before = copy.copy(self), self._setup
        fits = before is not None and before.profile is setup.profile and before.substitute == setup.substitute
        if not fits:  # without a profile, what is needed is refused in the usual words
            object.__setattr__(suited, "_score", None if setup.profile is None else self._score_for(setup))
        object.__setattr__(suited, "_setup", setup)
        if isinstance(self._schedule, ChecksSetup):
            self._schedule.check(setup)
        return suited

    def start(self, run: RunInfo) -> SenCacheState:
        """Return a state without a reference. A policy that ``suit`` was not called on scores for ``hold``.

        Raises:
            NeedsError: the run has no profile, or not what the tolerance schedule needs of it.
            SettingsError: the tolerance schedule cannot be met on this run.
        """
        if run.profile is None:
            raise NeedsError(
                "sencache needs a profile with alpha_x and alpha_t; make one with `cachepolicies calibrate`"
            )
        setup = self._setup or Setup(run.profile, Hold())
        score = self._score or self._score_for(setup)
        tolerance = self._schedule.start(run, setup, score, self.streak)
        none = (0,) * run.decisions
        return SenCacheState(
            lambda refreshes, t, displacement: score.at(refreshes, t, displacement),
            lambda step: checked(tolerance(step), step, f"sencache: tolerance schedule {self._schedule.name!r} "),
            None,
            ((),) * run.decisions,
            none,
            none,
        )

    def decide(self, step: Step, state: SenCacheState) -> Decision:
        """Compare the score of every sample with the tolerance.

        One host synchronisation; none before a reference, nor once every sample has spent its budget.
        """
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, ZERO, count)
        spent = self._spent(state)
        if state.x is not None and all(spent):
            return Decision.same(True, SPENT, count)
        epsilon = state.tolerance(step)
        if state.x is None:
            return Decision.same(False, NOTHING_TO_REUSE, count)
        moved = step.rms(difference(step.x, state.x))
        score = tuple(state.score(seen, step.t, far) for seen, far in zip(state.refreshes, moved, strict=True))
        protected = self._protected(step)
        reasons = tuple(
            SPENT if over else protected or self._reason(s, epsilon, m)
            for over, s, m in zip(spent, score, state.reused, strict=True)
        )
        return Decision(tuple(reason in (WITHIN, SPENT) for reason in reasons), reasons, score, (epsilon,) * count)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: SenCacheState) -> SenCacheState:
        """Move the reference of the evaluated samples here, count a reuse for the others."""
        if not self.reuses:
            return state
        reuse = decision.reuse
        reused = tuple(m + 1 if again else 0 for m, again in zip(state.reused, reuse, strict=True))
        if all(reuse):
            return evolve(state, reused=reused)
        kept = 1 + (0 if self._score is None else self._score.order)
        return SenCacheState(
            score=state.score,
            tolerance=state.tolerance,
            x=step.merge(state.x, step.x, reuse),
            refreshes=tuple(
                old if again else (step.t, *old)[:kept] for old, again in zip(state.refreshes, reuse, strict=True)
            ),
            reused=reused,
            evaluated=tuple(n if again else n + 1 for n, again in zip(state.evaluated, reuse, strict=True)),
        )

    def _score_for(self, setup: Setup) -> Score:
        try:
            return score_of(self.score, setup.profile, setup.substitute, self.interpolation)
        except NeedsError as error:
            extrapolates = isinstance(setup.substitute, Extrapolation) and setup.substitute.order > 0
            hint = '; score="bound" does with alpha_x and alpha_t' if extrapolates and self.score != "bound" else ""
            raise NeedsError(
                f"sencache, score={self.score!r} with substitute {setup.substitute.name!r}: {error}{hint}"
            ) from error

    def _spent(self, state: SenCacheState) -> tuple[bool, ...]:
        most = self.max_nfe
        return (False,) * len(state.evaluated) if most is None else tuple(n >= most for n in state.evaluated)

    def _protected(self, step: Step) -> str | None:
        if step.index is None or step.run.num_steps is None:
            return None
        if step.index < self.protect_first:
            return FIRST
        return LAST if step.index >= step.run.num_steps - self.protect_last else None

    def _reason(self, score: float, epsilon: float, reused: int) -> str:
        if epsilon == 0:
            return ZERO
        if not within(score, epsilon, self.comparison):  # also where the score is not a number
            return ABOVE
        return WITHIN if reused < self.streak else STREAK
