"""TeaCache: reuse while the estimated change of the output, summed over the steps, is small (arXiv 2411.19108)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies.base.errors import InputError, NeedsError
from cachepolicies.base.settings import a_name, non_negative, non_negative_int, one_of
from cachepolicies.base.units import difference
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies._comparison import COMPARISONS, Comparison, within
from cachepolicies.policies._filling import as_numbers, default_settings, fill, numbers
from cachepolicies.policies.limits import Limits, within_limits


class TeaCacheReason(Reason):
    """Why a sample is evaluated or reused."""

    BELOW = "accumulated change below threshold"
    REACHED = "accumulated change reached threshold"
    ZERO = "threshold is zero"
    NO_SCALE = "last signal is zero"
    NOT_FINITE = "change of the signal is not finite"
    OTHER_SHAPE = "signal changed its shape, dtype or device"


@frozen(eq=False)
class TeaCacheState:
    """What the next step is compared with.

    Attributes:
        signal: ``(B, ...)`` at the last step, evaluated or not; ``None`` before the first.
        accumulated: estimated change since each decision's last refresh, dimensionless.
    """

    signal: Tensor | None
    accumulated: tuple[float, ...]


@frozen
class TeaCache(PolicySettings):
    """Reuse while the accumulated, rescaled change of a signal inside the model is below a threshold.

    At every step ``rel = mean|s_k - s_{k-1}| / mean|s_{k-1}|`` of the signal s is turned by a polynomial into an
    estimate of the output's relative change and added up; the sum starts again from 0 at an evaluation (arXiv
    2411.19108, section 3.3; reference implementation ali-vilab/TeaCache). The step before counts, whether it was
    evaluated or not. Means are over all elements of the rows that a decision is about, in float32 at least, so that
    ``per_sample=False`` decides by the whole batch as the authors do.

    A setting that is ``None`` comes from the profile's settings for ``"teacache"``. A threshold means something only
    together with its polynomial and its signal: where one of these is given, the threshold has to be given too.

    Attributes:
        threshold: of the accumulated estimate, dimensionless. 0 never reuses, and is then bit for bit the bare model.
        coefficients: of the polynomial, highest power first; from the profile's polynomial for the signal.
        signal: what is watched: any that the site supplies, ``"modulated_input"``, ``"timestep_embedding"`` or
            ``"timestep_projection"`` in the authors' code; else the only one that the profile has a polynomial for.
        first: this many steps at the start are always evaluated, else 1; more than 1 needs a declared run.
        last: this many steps at the end are always evaluated, else 1; more than 0 needs a declared run.
        comparison: ``"<"`` (else this one, as in the authors' code) reuses below the threshold, ``"<="`` also at it.
    """

    name: ClassVar[str] = "teacache"

    knob: ClassVar[str] = "threshold"

    threshold: float | None = field(default=None, validator=optional(non_negative))
    coefficients: tuple[float, ...] | None = field(default=None, converter=as_numbers, validator=optional(numbers))
    signal: str | None = field(default=None, validator=optional(a_name))
    first: int | None = field(default=None, validator=optional(non_negative_int))
    last: int | None = field(default=None, validator=optional(non_negative_int))
    comparison: Comparison | None = field(default=None, validator=optional(one_of(*COMPARISONS)))

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the rule with the settings that were left open taken from the profile, within the limits.

        Raises:
            NeedsError: there is no threshold, no signal or no polynomial for it.
            ProfileError: the profile's settings for this policy are not valid.
        """
        profile = setup.profile
        settings = default_settings(profile, self.name)
        polynomials = {} if profile is None else profile.polynomials
        only = next(iter(polynomials)) if len(polynomials) == 1 else None
        usual = settings.get("signal", only)
        if self.coefficients is not None or self.signal not in (None, usual):
            settings.pop("threshold", None)  # belongs to the profile's own polynomial and signal
            settings.pop("coefficients", None)
        filled = fill(self, profile, settings, {"signal": only, "first": 1, "last": 1, "comparison": "<"})
        fitted = polynomials.get(filled.signal or "")
        coefficients = fitted.coefficients if filled.coefficients is None and fitted else filled.coefficients
        if filled.threshold is None or coefficients is None or filled.signal is None:
            given = {"threshold": filled.threshold, "coefficients": coefficients, "signal": filled.signal}
            missing = [setting for setting, value in given.items() if value is None]
            known = ", ".join(sorted(polynomials)) or "none"
            has = f"profile {profile.name!r} has polynomials for: {known}" if profile else "no profile was given"
            raise NeedsError(
                f"policy {self.name!r} lacks {', '.join(missing)} ({has}); give it as {missing[0]}=..., or use a "
                "profile that has it (`cachepolicies profiles` lists those shipped, `cachepolicies calibrate` fits one)"
            )
        rule = AccumulatedChange(filled.threshold, coefficients, filled.signal, filled.comparison or "<")
        return within_limits(rule, Limits(protect_first=filled.first or 0, protect_last=filled.last or 0))


@frozen
class AccumulatedChange(CachePolicy):
    """The rule of `TeaCache`, resolved: every setting has its value. The protected ends are limits around it.

    Attributes:
        threshold: of the accumulated estimate.
        coefficients: of the polynomial, highest power first.
        signal: that is watched.
        comparison: of the sum with the threshold.
    """

    name: ClassVar[str] = "teacache"

    threshold: float
    coefficients: tuple[float, ...]
    signal: str
    comparison: Comparison

    @property
    def needs(self) -> Needs:
        """The signal, unless nothing is ever reused."""
        return Needs(signals=(self.signal,) if self.reuses else ())

    @property
    def reuses(self) -> bool:
        """Unless the threshold is zero."""
        return self.threshold != 0

    def start(self, run: RunInfo) -> TeaCacheState:
        """Return a state without a signal."""
        return TeaCacheState(None, (0.0,) * run.decisions)

    def decide(self, step: Step, state: TeaCacheState) -> Decision:
        """Add the step's estimated change and compare. One host synchronisation."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, TeaCacheReason.ZERO, count)
        current, last = self._signal(step), state.signal
        if last is None:
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, count)
        if (last.shape, last.dtype, last.device) != (current.shape, current.dtype, current.device):
            return Decision.same(False, TeaCacheReason.OTHER_SHAPE, count)
        changes = self._changes(step, current, last)
        added = (math.nan if change is None else self._estimate(change) for change in changes)
        score = tuple(old + more for old, more in zip(state.accumulated, added, strict=True))
        reasons = tuple(
            TeaCacheReason.NO_SCALE if c is None else self._reason(s) for c, s in zip(changes, score, strict=True)
        )
        return Decision(
            tuple(reason is TeaCacheReason.BELOW for reason in reasons),
            reasons,
            score,
            (self.threshold,) * count,
            score_is_change=False,
        )

    def observe(self, step: Step, decision: Decision, output: Tensor, state: TeaCacheState) -> TeaCacheState:
        """Remember the signal; keep the sum of the reused samples, start it again for the others."""
        if not self.reuses:
            return state
        summed = decision.score or state.accumulated
        kept = tuple(s if reuse else 0.0 for s, reuse in zip(summed, decision.reuse, strict=True))
        return evolve(state, signal=self._signal(step).detach().clone(), accumulated=kept)

    def _signal(self, step: Step) -> Tensor:
        signal = step.signals.get(self.signal)
        if signal is None:
            raise NeedsError(f"teacache needs the signal {self.signal!r} at every step, and got {sorted(step.signals)}")
        if signal.ndim == 0 or signal.shape[0] != step.run.layout.rows:
            raise InputError(
                f"signal {self.signal!r} has shape {tuple(signal.shape)} for a batch of {step.run.layout.rows}; "
                "the first dimension must be the batch"
            )
        return signal

    def _changes(self, step: Step, current: Tensor, last: Tensor) -> list[float | None]:
        """Return rel for each decision; ``None`` where the last signal was zero."""
        dtype = torch.float64 if current.dtype == torch.float64 else torch.float32
        sizes = (values.detach().abs().reshape(values.shape[0], -1) for values in (difference(current, last), last))
        moved, scale = step.read(*(rows.sum(dim=1, dtype=dtype) for rows in sizes))
        groups = [step.run.layout.rows_of(d) for d in range(step.run.decisions)]
        sums = [(sum(moved[r] for r in group), sum(scale[r] for r in group)) for group in groups]
        return [top / bottom if bottom else None for top, bottom in sums]

    def _estimate(self, change: float) -> float:
        total = 0.0
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total

    def _reason(self, score: float) -> TeaCacheReason:
        if not math.isfinite(score):
            return TeaCacheReason.NOT_FINITE
        return TeaCacheReason.BELOW if within(score, self.threshold, self.comparison) else TeaCacheReason.REACHED
