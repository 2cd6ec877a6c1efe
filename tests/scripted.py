"""A policy that does what the test says, by noise level: which samples are reused at which t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen

from cachepolicies import CachePolicy, Decision, Needs, Reason, Step


class Why(Reason):
    SCRIPT = "script"


@frozen(eq=False)
class Scripted(CachePolicy):
    """Reuse the samples that `script` names at a t; evaluate everywhere else.

    Attributes:
        script: t to one bool a decision, or one for all of them.
        signals: declared, and kept for the test to look at.
        seen: t to the signals there.
    """

    name: ClassVar[str] = "scripted"

    script: Mapping[float, bool | Sequence[bool]] = field(factory=dict)
    signals: tuple[str, ...] = ()
    seen: dict[float, dict[str, Any]] = field(factory=dict)

    @property
    def needs(self) -> Needs:
        return Needs(signals=self.signals)

    def decide(self, step: Step, state: None) -> Decision:
        self.seen[step.t] = dict(step.signals)
        nearest = next((t for t in self.script if abs(t - step.t) < 1e-6), None)
        wanted = False if nearest is None else self.script[nearest]
        reuse = (wanted,) * step.run.decisions if isinstance(wanted, bool) else tuple(wanted)
        return Decision(reuse, (Why.SCRIPT,) * len(reuse))
