"""A place of a call that was decided on, before that is carried out."""

from __future__ import annotations

from attrs import define

from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.step import Step
from cachepolicies.engine.call import Arrival
from cachepolicies.engine.memory import Key
from cachepolicies.engine.run import DecisionGroup


@define(eq=False)
class Turn:
    """What is to be done at one place of one call.

    Attributes:
        arrival: the place that was reached.
        key: branch and place.
        group: of the branches and places that follow one decision.
        decision: as it is carried out.
        whole: whether all rows are evaluated.
        step: what the policy is told; ``None`` where it is told nothing here.
        led: whether the decision was taken here, and not at another branch or place.
    """

    arrival: Arrival
    key: Key
    group: DecisionGroup
    decision: Decision
    whole: bool
    step: Step | None
    led: bool
