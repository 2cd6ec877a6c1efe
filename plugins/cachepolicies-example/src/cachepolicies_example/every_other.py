"""The policy: evaluate, reuse, evaluate, reuse."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of, le
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Reason, RunInfo, Step

State = tuple[bool, ...]
"""Whether each deciding sample reused at its last step."""


class Why(Reason):
    """Why a sample is evaluated or reused."""

    START = "start"
    TURN = "its turn"
    REUSED = "reused before"


@frozen
class EveryOther(CachePolicy):
    """Evaluates every other step, once a fraction of the run has passed.

    Attributes:
        start_after: fraction of the run, from 0 to 1, that is evaluated throughout; in steps when the run was
            declared, else in t.
    """

    name: ClassVar[str] = "every-other"

    start_after: float = field(default=0.0, validator=[instance_of((float, int)), ge(0), le(1)])

    @property
    def reuses(self) -> bool:
        """Not if the whole run is to be evaluated."""
        return self.start_after < 1

    def start(self, run: RunInfo) -> State:
        """Begin as if every sample had just reused, so that the first step is evaluated."""
        return (True,) * run.decisions

    def decide(self, step: Step, state: State) -> Decision:
        """Reuse where the last step was evaluated."""
        if step.run.in_first(self.start_after, step.t):
            return Decision.same(False, Why.START, step.run.decisions)
        reuse = tuple(not reused for reused in state)
        return Decision(reuse, tuple(Why.TURN if yes else Why.REUSED for yes in reuse))

    def observe(self, step: Step, decision: Decision, output: Tensor, state: State) -> State:
        """Remember what was done, which need not be what was wanted: a guard may have evaluated instead."""
        return decision.reuse
