"""SenCache: reuse while the calibrated sensitivities predict a small change (arXiv 2602.24208)."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Literal

from attrs import Attribute, evolve, field, frozen
from torch import Tensor

from cachepolicies._errors import NeedsError, SettingsError
from cachepolicies._policy import Decision, Needs
from cachepolicies._reasons import NOTHING_TO_REUSE
from cachepolicies._settings import fraction, non_negative, non_negative_int, one_of
from cachepolicies._step import RunInfo, Step
from cachepolicies._units import difference
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within

WITHIN = "score within tolerance"
ABOVE = "score above tolerance"
STREAK = "max_reuse reached"
ZERO = "tolerance is zero"
FIRST = "protected first step"
LAST = "protected last step"


def _tolerance(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if not callable(value):
        non_negative(instance, attribute, value)


@frozen(eq=False)
class SenCacheState:
    """The reference of every decision: where it was last evaluated, and how often it was reused since.

    Attributes:
        x: ``(B, ...)`` latent at each row's last refresh, ``None`` before the first.
        t: noise level of each decision's last refresh.
        alpha_x: sensitivity to the latent there, dimensionless.
        alpha_t: sensitivity to t there, RMS per unit of t.
        reused: consecutive reuses since.
    """

    x: Tensor | None
    t: tuple[float, ...]
    alpha_x: tuple[float, ...]
    alpha_t: tuple[float, ...]
    reused: tuple[int, ...]


@frozen
class SenCache:
    """Reuse while the sensitivities predict that the output has moved by no more than a tolerance.

    The score against the last refresh r is ``S = alpha_x(t_r) * norm(x - x_r) + alpha_t(t_r) * |t - t_r|``; a sample is
    reused iff ``S <= epsilon`` (arXiv 2602.24208, section 4 and Algorithm 1). Norms are RMS, one per deciding sample,
    so a tolerance means the same at every resolution. The sensitivities come from a profile. They are looked up at a
    refresh and kept until the next, as in the authors' code.

    At most ``max_reuse`` reuses follow each other. Algorithm 1 of the paper increments its counter before testing it,
    which allows one less; its text and the authors' code allow ``max_reuse``, and so does this.

    Attributes:
        epsilon: tolerance, RMS change of the output; a number or a function of t. 0 never reuses, and is then bit for
            bit the bare model.
        max_reuse: largest number of consecutive reuses; the bound is first order, true for small moves only.
        epsilon_start: stricter tolerance of the first part of the run (paper: 0.01); where ``epsilon`` is smaller
            still, that holds.
        start_fraction: length of that part, in steps when the run was declared, else in t (paper: 0.2).
        protect_first: this many steps at the start are always evaluated; needs a declared run.
        protect_last: this many steps at the end are always evaluated; needs a declared run.
        interpolation: how the profile is read between calibrated timesteps: ``"linear"``, or ``"nearest"`` as in the
            authors' code.
        comparison: ``"<="`` as in the paper, or ``"<"`` as in the authors' code, which evaluates at a score that equals
            the tolerance.
    """

    name: ClassVar[str] = "sencache"

    epsilon: float | Callable[[float], float] = field(default=0.07, validator=_tolerance)
    max_reuse: int = field(default=3, validator=non_negative_int)
    epsilon_start: float = field(default=0.01, validator=non_negative)
    start_fraction: float = field(default=0.2, validator=fraction)
    protect_first: int = field(default=0, validator=non_negative_int)
    protect_last: int = field(default=0, validator=non_negative_int)
    interpolation: Literal["linear", "nearest"] = field(default="linear", validator=one_of("linear", "nearest"))
    comparison: Comparison = field(default="<=", validator=one_of(*COMPARISONS))

    @property
    def needs(self) -> Needs:
        """Both sensitivities; the run length only to protect steps."""
        return Needs(curves=("alpha_x", "alpha_t"), run_length=bool(self.protect_first or self.protect_last))

    @property
    def reuses(self) -> bool:
        """Unless the tolerance or the number of reuses is zero."""
        return self.epsilon != 0 and self.max_reuse > 0

    def start(self, run: RunInfo) -> SenCacheState:
        """Return a state without a reference.

        Raises:
            NeedsError: the run has no profile.
        """
        if run.profile is None:
            raise NeedsError(
                "sencache needs a profile with alpha_x and alpha_t; make one with `cachepolicies calibrate`"
            )
        empty = (math.nan,) * run.decisions
        return SenCacheState(None, empty, empty, empty, (0,) * run.decisions)

    def tolerance(self, step: Step) -> float:
        """Return the tolerance that holds at a step, an RMS change of the output.

        Raises:
            SettingsError: ``epsilon`` is a function and returned something else than a finite number >= 0.
        """
        given: Any = self.epsilon(step.t) if callable(self.epsilon) else self.epsilon
        epsilon = float(given) if isinstance(given, Real) else math.nan
        if not 0 <= epsilon < math.inf:
            raise SettingsError(f"sencache: epsilon({step.t:g}) returned {given!r}; a tolerance is finite and >= 0")
        if step.in_first(self.start_fraction):
            return min(self.epsilon_start, epsilon)
        return epsilon

    def decide(self, step: Step, state: SenCacheState) -> Decision:
        """Compare the score of every sample with the tolerance. One host synchronisation, none before a reference."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, ZERO, count)
        epsilon = self.tolerance(step)
        if state.x is None:
            return Decision.same(False, NOTHING_TO_REUSE, count)
        moved = step.rms(difference(step.x, state.x))
        score = tuple(
            alpha_x * distance + alpha_t * abs(step.t - t)
            for alpha_x, distance, alpha_t, t in zip(state.alpha_x, moved, state.alpha_t, state.t, strict=True)
        )
        protected = self._protected(step)
        reasons = tuple(protected or self._reason(s, epsilon, m) for s, m in zip(score, state.reused, strict=True))
        return Decision(tuple(reason == WITHIN for reason in reasons), reasons, score, (epsilon,) * count)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: SenCacheState) -> SenCacheState:
        """Move the reference of the evaluated samples here, count a reuse for the others."""
        if not self.reuses:
            return state
        reused = tuple(m + 1 if reuse else 0 for m, reuse in zip(state.reused, decision.reuse, strict=True))
        if all(decision.reuse):
            return evolve(state, reused=reused)
        profile = step.run.profile
        if profile is None:
            raise NeedsError("sencache lost its profile in the middle of a run")
        alpha_x = profile.curves["alpha_x"].at(step.t, self.interpolation)
        alpha_t = profile.curves["alpha_t"].at(step.t, self.interpolation)
        keep = decision.reuse
        return SenCacheState(
            x=step.merge(state.x, step.x, keep),
            t=tuple(old if k else step.t for old, k in zip(state.t, keep, strict=True)),
            alpha_x=tuple(old if k else alpha_x for old, k in zip(state.alpha_x, keep, strict=True)),
            alpha_t=tuple(old if k else alpha_t for old, k in zip(state.alpha_t, keep, strict=True)),
            reused=reused,
        )

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
        return WITHIN if reused < self.max_reuse else STREAK
