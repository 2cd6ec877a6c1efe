"""EasyCache: reuse while the output's change, estimated from the latent's, is small (arXiv 2507.02860)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from attrs import evolve, field, fields, frozen
from torch import Tensor

from cachepolicies.base.settings import non_negative, non_negative_int, plain
from cachepolicies.base.units import difference
from cachepolicies.contracts.policy import CachePolicy, Decision, PolicySettings
from cachepolicies.contracts.reasons import EngineReason, Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.policies.limits import Limits, within_limits

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

OUTPUT_L1, CHANGE_L1, DISPLACEMENT_L1 = "output_l1", "change_l1", "displacement_l1"
"""Tables of mean magnitudes: of outputs, of differences of outputs, of differences of latents."""


_ASTRAY = 1.1
"""How much faster the output seems to follow the latent where that was led astray by what stood in before.

Chosen on the reference models, not their twins: 1.0 to 1.05 for video and sound, 1.1 to 1.2 for the others.
"""


class EasyCacheReason(Reason):
    """Why a sample is evaluated or reused."""

    BELOW = "accumulated change below threshold"
    REACHED = "accumulated change reached threshold"
    ZERO = "threshold is zero"
    NO_RATE = "fewer than two evaluations"
    NO_SCALE = "last output, or last change of the latent, is zero"
    NOT_FINITE = "estimated change is not finite"
    OTHER_SHAPE = "latent changed its shape, dtype or device"


@frozen(eq=False)
class EasyCacheState:
    """What the next step is compared with.

    Attributes:
        latent: ``(B, ...)`` at the last step, evaluated or not.
        size: ``(B,)`` mean magnitude of what flowed on at that step.
        refreshed_latent: ``(B, ...)`` at the last evaluation of every row.
        refreshed_output: ``(B, ...)`` what that evaluation gave.
        moved_output: ``(B,)`` mean change of the output between the last two evaluations of every row.
        moved_latent: ``(B,)`` mean change of the latent between them.
        evaluations: of every decision so far.
        accumulated: estimated change since each decision's last evaluation, dimensionless.
    """

    latent: Tensor
    size: Tensor
    refreshed_latent: Tensor
    refreshed_output: Tensor
    moved_output: Tensor
    moved_latent: Tensor
    evaluations: tuple[int, ...]
    accumulated: tuple[float, ...]


@frozen
class EasyCache(PolicySettings):
    """Reuse while the output's accumulated relative change, estimated from the latent's, is below a threshold.

    ``k = mean|f - f'| / mean|x - x'|`` between the last two evaluations is the rate at which the output f follows the
    latent x. At every step ``k mean|x_t - x_{t-1}| / mean|f_{t-1}|`` is added up; the sum starts again from 0 at an
    evaluation (arXiv 2507.02860, section 3). x_{t-1} and f_{t-1} are those of the step before, evaluated or not: f as
    it flowed on. Means are over all elements of the rows that a decision is about, in float32 at least.

    The authors' stand-in is the latent plus the last difference of output and latent: ``substitute="residual"``.

    Attributes:
        threshold: of the sum, dimensionless; 0.05 is the authors' for Wan. 0 never reuses.
        first: this many steps at the start are always evaluated; more than 1 needs a declared run.
        last: this many steps at the end are always evaluated; more than 0 needs a declared run.
    """

    name: ClassVar[str] = "easycache"

    knob: ClassVar[str] = "threshold"

    threshold: float = field(default=0.05, converter=plain, validator=non_negative)
    first: int = field(default=10, converter=plain, validator=non_negative_int)
    last: int = field(default=1, converter=plain, validator=non_negative_int)

    @property
    def stand_in(self) -> str:
        """The line along the path of the output: the less a stand-in leads the latent astray, the truer the rate."""
        return "linear:time=path"

    def simulated(self, profile: Profile) -> list[float]:
        """Return how many steps of each calibration run are evaluated, by the mean magnitudes in the profile.

        The runs were uncached: what stands in leads the latent a little astray, which this counts in with one factor.

        Raises:
            NeedsError: the profile does not have them.
        """
        profile.require(self.name, (OUTPUT_L1, CHANGE_L1, DISPLACEMENT_L1))
        sizes, change, moved = (profile.tables[name] for name in (OUTPUT_L1, CHANGE_L1, DISPLACEMENT_L1))
        return [
            self._simulated(sizes[:, s].tolist(), change[:, :, s].tolist(), moved[:, :, s].tolist())
            for s in range(profile.samples)
        ]

    def _simulated(self, size: list[float], change: list[list[float]], moved: list[list[float]]) -> float:
        """Return how many steps of one run are evaluated, where what flows on is as large as the output itself."""
        count, refreshes, total = len(size), [0], 0.0
        for k in range(1, count):
            protected = k < self.first or k >= count - self.last
            if len(refreshes) > 1:
                newest, before = refreshes[-1], refreshes[-2]
                rate = change[newest][before] / moved[newest][before] if moved[newest][before] else math.nan
                total += _ASTRAY * rate * moved[k][k - 1] / size[k - 1] if size[k - 1] else math.nan
            if protected or len(refreshes) < 2 or not total < self.threshold:
                refreshes.append(k)
                total = 0.0
        return float(len(refreshes))

    def for_budget(self, evaluations: int, num_steps: int) -> EasyCache:
        """Return the settings with fewer protected first steps, where they were left at the default."""
        if self.first != fields(EasyCache).first.default:
            return self
        return evolve(self, first=min(self.first, max(1, evaluations // 2)))

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the rule within the limits."""
        return within_limits(EstimatedChange(self.threshold), Limits(protect_first=self.first, protect_last=self.last))


@frozen
class EstimatedChange(CachePolicy):
    """The rule of `EasyCache`. The protected ends are limits around it.

    Attributes:
        threshold: of the sum.
    """

    name: ClassVar[str] = "easycache"

    threshold: float

    @property
    def reuses(self) -> bool:
        """Unless the threshold is zero."""
        return self.threshold != 0

    def start(self, run: RunInfo) -> EasyCacheState | None:
        """Return no state: nothing was evaluated."""
        return None

    def decide(self, step: Step, state: EasyCacheState | None) -> Decision:
        """Add the step's estimated change and compare. One host synchronisation."""
        count = step.run.decisions
        if not self.reuses:
            return Decision.same(False, EasyCacheReason.ZERO, count)
        if state is None:
            return Decision.same(False, EngineReason.NOTHING_TO_REUSE, count)
        if not _alike(state.latent, step.x):
            return Decision.same(False, EasyCacheReason.OTHER_SHAPE, count)
        if all(known < 2 for known in state.evaluations):
            return Decision.same(False, EasyCacheReason.NO_RATE, count)
        changes = self._changes(step, state)
        score = tuple(
            old + (math.nan if more is None else more) for old, more in zip(state.accumulated, changes, strict=True)
        )
        reasons = tuple(
            EasyCacheReason.NO_RATE
            if known < 2
            else EasyCacheReason.NO_SCALE
            if change is None
            else self._reason(total)
            for known, change, total in zip(state.evaluations, changes, score, strict=True)
        )
        return Decision(
            tuple(reason is EasyCacheReason.BELOW for reason in reasons),
            reasons,
            score,
            (self.threshold,) * count,
            score_is_change=False,
        )

    def observe(
        self, step: Step, decision: Decision, output: Tensor, state: EasyCacheState | None
    ) -> EasyCacheState | None:
        """Remember latent and size of the output; of what was evaluated, how far both went since the time before."""
        if not self.reuses:
            return state
        x, flowed, reuse = step.x.detach(), output.detach(), decision.reuse
        size = _mean(flowed)
        if state is None or not _alike(state.latent, x) or not _alike(state.refreshed_output, flowed):
            none, fresh = torch.zeros_like(_mean(x)), x.clone()
            counts = tuple(int(not again) for again in reuse)
            return EasyCacheState(
                fresh, size, fresh, flowed.clone(), torch.zeros_like(size), none, counts, (0.0,) * len(reuse)
            )
        moved_output = step.merge(state.moved_output, _mean(difference(flowed, state.refreshed_output)), reuse)
        moved_latent = step.merge(state.moved_latent, _mean(difference(x, state.refreshed_latent)), reuse)
        summed = decision.score or state.accumulated
        return EasyCacheState(
            x.clone(),
            size,
            step.merge(state.refreshed_latent, x, reuse),
            step.merge(state.refreshed_output, flowed, reuse),
            moved_output,
            moved_latent,
            tuple(n if again else n + 1 for n, again in zip(state.evaluations, reuse, strict=True)),
            tuple(s if again else 0.0 for s, again in zip(summed, reuse, strict=True)),
        )

    def _changes(self, step: Step, state: EasyCacheState) -> list[float | None]:
        """Return the estimated change for each decision; ``None`` where what it is divided by is zero."""
        read = step.read(
            _mean(difference(step.x.detach(), state.latent)), state.size, state.moved_output, state.moved_latent
        )
        found: list[float | None] = []
        for d in range(step.run.decisions):
            moved, size, output, latent = (sum(rows[row] for row in step.run.layout.rows_of(d)) for rows in read)
            found.append(output / latent * moved / size if latent and size else None)
        return found

    def _reason(self, score: float) -> EasyCacheReason:
        if not math.isfinite(score):
            return EasyCacheReason.NOT_FINITE
        return EasyCacheReason.BELOW if score < self.threshold else EasyCacheReason.REACHED


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


def _mean(values: Tensor) -> Tensor:
    """Return the mean magnitude of every row, ``(B, ...)`` to ``(B,)``, float64 where it is, else float32."""
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return values.abs().reshape(values.shape[0], -1).mean(dim=1, dtype=dtype)
