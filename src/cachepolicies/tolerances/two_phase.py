"""Two phases: a stricter tolerance for the first part of the run, as in the paper on SenCache."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from cachepolicies.base.settings import fraction, non_negative, plain
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score

EPSILON = 0.07
EPSILON_START = 0.01
START_FRACTION = 0.2


@frozen
class TwoPhase(ToleranceSchedule):
    """A tolerance with a stricter one before it (arXiv 2602.24208, section 5: 0.01 for the first 20 % of the steps).

    An error of the latent made early is amplified by the steps that follow; the stricter start stands for that.

    Attributes:
        epsilon: tolerance, RMS change of the output; 0 never reuses.
        epsilon_start: tolerance of the first part; where ``epsilon`` is smaller still, that holds.
        start_fraction: length of the first part, in steps when the run was declared, else in t.
    """

    name: ClassVar[str] = "two-phase"

    epsilon: float = field(default=EPSILON, converter=plain, validator=non_negative)
    epsilon_start: float = field(default=EPSILON_START, converter=plain, validator=non_negative)
    start_fraction: float = field(default=START_FRACTION, converter=plain, validator=fraction)

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the tolerance as a function of the step."""
        later, part = float(self.epsilon), float(self.start_fraction)
        early = min(float(self.epsilon_start), later)
        return lambda step: early if step.in_first(part) else later
