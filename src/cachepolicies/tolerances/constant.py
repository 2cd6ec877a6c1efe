"""Constant: one tolerance for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from cachepolicies.base.settings import non_negative, plain
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.tolerance import ToleranceAt, ToleranceSchedule

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score


@frozen
class Constant(ToleranceSchedule):
    """The same tolerance at every step.

    Attributes:
        epsilon: tolerance, RMS change of the output; 0 never reuses.
    """

    name: ClassVar[str] = "constant"

    epsilon: float = field(converter=plain, validator=non_negative)

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the constant as a function of the step."""
        epsilon = float(self.epsilon)
        return lambda step: epsilon
