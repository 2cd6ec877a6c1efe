"""SeaCache: reuse while the denoised part of the latent changed little, summed over the steps (arXiv 2602.18993)."""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from attrs import evolve, field, fields, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies.base.errors import InputError, NeedsError
from cachepolicies.base.settings import non_negative, non_negative_int, plain, positive
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies.limits import Limits, within_limits
from cachepolicies.schedulers.noise_share import NoiseShare
from cachepolicies.schedulers.resolve import as_scheduler

_SIGNAL = "spatial-latent"
_SMALLEST = 1e-16
"""What is added to what may be zero before it divides."""

_EDGE = 1e-6
"""The share of the noise is kept so far from 0 and 1."""

_STREAKS = 3
"""How many times as long as the mean streak of a budget the longest may be."""

_MOST_DIMENSIONS = 5
"""Rows, channels, and up to three axes."""


class SeaCacheReason(Reason):
    """Why a sample is evaluated or reused."""

    BELOW = "accumulated change below threshold"
    REACHED = "accumulated change reached threshold"
    ZERO = "threshold is zero"
    NOT_FINITE = "change of the latent is not finite"
    OTHER_SHAPE = "latent changed its shape, dtype or device"


def _scheduler(value: object) -> Scheduler | None:
    return None if value is None else as_scheduler(value)


@frozen(eq=False)
class SeaCacheState:
    """What the next step is compared with.

    Attributes:
        latent: ``(B, C, ...)`` at the last step, evaluated or not; ``None`` before the first.
        t: of that step.
        accumulated: change since each decision's last refresh, dimensionless.
    """

    latent: Tensor | None
    t: float
    accumulated: tuple[float, ...]


@frozen
class SeaCache(PolicySettings):
    """Reuse while the accumulated relative change of the latent, seen through a Wiener filter, is below a threshold.

    The filter keeps of every frequency what is signal at the noise level of the step: early only the lowest, late all.
    Its gain is a product over the axes (time, height, width) of ``a S / (a^2 S + b^2)``, with the power of natural
    images ``S = 1 / |frequency|^power``, a and b the shares of data and noise, divided by its mean over all
    frequencies (arXiv 2602.18993, eq. 7; reference implementation: diffusers' ``SeaCacheConfig``). At every step
    ``mean|F_k - F_{k-1}| / mean|F_{k-1}|`` of the filtered latent F is added up; the sum starts again from 0 at an
    evaluation. The step before counts, whether it was evaluated or not.

    A batch with one decision takes the mean of its rows' ratios, as diffusers does. Frequencies are in cycles per
    sample. A latent ``(B, C)`` has no axes, and gain 1. The latent comes as the signal ``"spatial-latent"``: along the
    axes that the adapter of the model's class knows.

    Published settings remember the residual of the block stack and extrapolate it to first order:
    ``site="blocks", substitute="linear"``.

    Attributes:
        threshold: of the sum, dimensionless. 0 never reuses.
        power: of the frequency in S.
        max_reuse: largest number of reuses in a row; ``None`` for no limit.
        first: this many steps at the start are always evaluated; more than 1 needs a declared run.
        last: this many steps at the end are always evaluated; more than 0 needs a declared run.
        scheduler: whose noise levels these are: anything that `as_scheduler` takes; else the one in use.
    """

    name: ClassVar[str] = "seacache"

    knob: ClassVar[str] = "threshold"

    threshold: float = field(default=0.25, converter=plain, validator=non_negative)
    power: float = field(default=3.0, converter=plain, validator=positive)
    max_reuse: int | None = field(default=cast("int | None", 2), converter=plain, validator=optional(non_negative_int))
    first: int = field(default=1, converter=plain, validator=non_negative_int)
    last: int = field(default=1, converter=plain, validator=non_negative_int)
    scheduler: Scheduler | None = field(default=None, converter=_scheduler)

    def for_budget(self, evaluations: int, num_steps: int) -> SeaCache:
        """Return the settings with a longest streak, where it was left at its default, that leaves room."""
        if self.max_reuse != fields(SeaCache).max_reuse.default:
            return self
        return evolve(self, max_reuse=max(self.max_reuse or 0, _STREAKS * math.ceil(num_steps / evaluations)))

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the rule with the scheduler in use, within the limits.

        Raises:
            NeedsError: no scheduler is known.
        """
        scheduler = setup.scheduler if self.scheduler is None else self.scheduler
        if scheduler is None:
            raise NeedsError(
                f"policy {self.name!r} filters the latent by its noise level, and no scheduler is known; give "
                "scheduler=... as a setting of the policy, enable the cache on a pipeline, or give a profile that "
                "names its scheduler"
            )
        noise = NoiseShare.of(scheduler, "timestep" if setup.adapter is None else setup.adapter.clock)
        limits = Limits(protect_first=self.first, protect_last=self.last, max_reuse=self.max_reuse)
        return within_limits(FilteredChange(self.threshold, self.power, noise), limits)


@frozen
class FilteredChange(CachePolicy):
    """The rule of `SeaCache`, resolved. The protected ends and the longest streak are limits around it.

    Attributes:
        threshold: of the sum.
        power: of the frequency.
        noise: share of the noise at t.
    """

    name: ClassVar[str] = "seacache"

    threshold: float
    power: float
    noise: NoiseShare

    @property
    def needs(self) -> Needs:
        """The latent along its axes, unless nothing is ever reused."""
        return Needs(signals=(_SIGNAL,) if self.reuses else ())

    @property
    def reuses(self) -> bool:
        """Unless the threshold is zero."""
        return self.threshold != 0

    def start(self, run: RunInfo) -> SeaCacheState:
        """Return a state without a latent."""
        return SeaCacheState(None, math.nan, (0.0,) * run.decisions)

    def decide(self, step: Step, state: SeaCacheState) -> Decision:
        """Add the step's change and compare. One host synchronisation."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, SeaCacheReason.ZERO, count)
        current, last = self._latent(step), state.latent
        if last is None:
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, count)
        if (last.shape, last.dtype, last.device) != (current.shape, current.dtype, current.device):
            return Decision.same(False, SeaCacheReason.OTHER_SHAPE, count)
        changes = self._changes(step, current, last, state.t)
        score = tuple(old + more for old, more in zip(state.accumulated, changes, strict=True))
        reasons = tuple(self._reason(s) for s in score)
        return Decision(
            tuple(reason is SeaCacheReason.BELOW for reason in reasons),
            reasons,
            score,
            (self.threshold,) * count,
            score_is_change=False,
        )

    def observe(self, step: Step, decision: Decision, output: Tensor, state: SeaCacheState) -> SeaCacheState:
        """Remember the latent; keep the sum of the reused samples, start it again for the others."""
        if not self.reuses:
            return state
        summed = decision.score or state.accumulated
        kept = tuple(s if reuse else 0.0 for s, reuse in zip(summed, decision.reuse, strict=True))
        return evolve(state, latent=self._latent(step).detach().clone(), t=step.t, accumulated=kept)

    def _latent(self, step: Step) -> Tensor:
        latent = step.signals.get(_SIGNAL)
        if latent is None:
            raise NeedsError(f"seacache needs the signal {_SIGNAL!r} at every step, and got {sorted(step.signals)}")
        if not 0 < latent.ndim <= _MOST_DIMENSIONS or latent.shape[0] != step.run.layout.rows:
            raise InputError(
                f"signal {_SIGNAL!r} has shape {tuple(latent.shape)} for a batch of {step.run.layout.rows}; a latent "
                "is (B, C, *axes) with at most three axes"
            )
        return latent

    def _changes(self, step: Step, current: Tensor, last: Tensor, last_t: float) -> list[float]:
        """Return the relative change of the filtered latent for each decision: the mean over its rows."""
        before = filtered(last.detach(), self.noise.at(last_t), self.power).flatten(1)
        now = filtered(current.detach(), self.noise.at(step.t), self.power).flatten(1)
        moved, scale = step.read((now - before).abs().mean(dim=1), before.abs().mean(dim=1))
        ratios = [top / (bottom + _SMALLEST) for top, bottom in zip(moved, scale, strict=True)]
        groups = (step.run.layout.rows_of(d) for d in range(step.run.decisions))
        return [sum(ratios[row] for row in group) / len(group) for group in groups]

    def _reason(self, score: float) -> SeaCacheReason:
        if not math.isfinite(score):
            return SeaCacheReason.NOT_FINITE
        return SeaCacheReason.BELOW if score < self.threshold else SeaCacheReason.REACHED


def filtered(latent: Tensor, noise: float, power: float) -> Tensor:
    """Return a latent through the Wiener filter of its noise level.

    Args:
        latent: ``(B, C, *axes)``, or ``(B,)`` or ``(B, C)``, which have no axes and gain 1.
        noise: share b of the noise, that of the data being a = 1 - b; kept off 0 and 1.
        power: of the frequency in the power of the data.

    Returns:
        A tensor of the same shape, float64 where the latent is, else float32. ``(B,)`` becomes ``(B, 1)``.
    """
    values = latent if latent.dtype == torch.float64 else latent.float()
    axes = tuple(range(2, values.ndim))
    if not axes:
        return values.reshape(values.shape[0], -1)
    b = min(max(noise, _EDGE), 1.0 - _EDGE)
    a = 1.0 - b
    gain = torch.ones((), dtype=values.dtype, device=values.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(values.shape[axis], dtype=values.dtype, device=values.device)
        signal = 1.0 / (frequency.abs().pow(power) + _SMALLEST)
        along = a * signal / (a**2 * signal + b**2 + _SMALLEST)
        gain = gain * along.reshape(-1, *[1] * (values.ndim - 1 - axis))
    spectrum = torch.fft.fftn(values, dim=axes) * (gain / gain.mean())
    result: Tensor = torch.fft.ifftn(spectrum, dim=axes).real
    return result
