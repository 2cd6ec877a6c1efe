"""Constant: one tolerance for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from cachepolicies._policy import Needs
from cachepolicies._settings import non_negative, plain
from cachepolicies._setup import Setup
from cachepolicies._step import RunInfo
from cachepolicies.tolerances.base import ToleranceAt

if TYPE_CHECKING:
    from cachepolicies.scores.base import Score


@frozen
class Constant:
    """The same tolerance at every step.

    Attributes:
        epsilon: tolerance, RMS change of the output; 0 never reuses.
    """

    name: ClassVar[str] = "constant"

    epsilon: float = field(converter=plain, validator=non_negative)

    @property
    def needs(self) -> Needs:
        """Nothing."""
        return Needs()

    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the constant as a function of the step."""
        epsilon = float(self.epsilon)
        return lambda step: epsilon
