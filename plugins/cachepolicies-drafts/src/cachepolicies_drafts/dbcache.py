"""DBCache (cache-dit): the first blocks and the last always run; the first ones tell whether those between have to."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, instance_of, optional
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Needs, RunInfo, Step
from cachepolicies_drafts._change import Why, relative_changes


@frozen
class _Seen:
    """What is known between the steps of a run.

    Attributes:
        prefix: ``(B, ...)`` what the first blocks had added when all ran last.
        reused: by each deciding sample since the run began.
        in_a_row: by each deciding sample since all ran last.
    """

    prefix: Tensor | None
    reused: tuple[int, ...]
    in_a_row: tuple[int, ...]


@frozen
class DBCache(CachePolicy):
    """Run the first n blocks and the last m at every step; reuse what those between add while the first changed little.

    What the first blocks add now is compared with what they added when all ran last: ``mean|now - then| / mean|then|``,
    reused below the threshold. The last blocks run on the result and correct it.

    It reads the signal ``prefix``: one number travels to the host at every step. It cuts at ``"blocks[n:-m]"``;
    ``hold`` stands in, and ``taylor`` can. It costs n + m blocks a step. It helps where a whole run has to be kept from
    drifting without calibration: the first steps are always computed, and the reuses can be limited. What users run
    into: the threshold of another model or another number of steps does not carry over.

    Published by cache-dit: ``first=8, last=0`` (F8B0), threshold 0.08, 8 steps of warm-up, no limits; F1B0 is the same
    cut as FirstBlockCache.

    Attributes:
        first: n: blocks that always run, and are looked at.
        last: m: blocks at the end that always run.
        threshold: relative change below which those between are reused; 0 computes everything.
        warm_up: steps, from the first, that are computed throughout.
        most: reuses in a run; ``None`` for any number.
        in_a_row: reuses one after the other; ``None`` for any number.
    """

    name: ClassVar[str] = "dbcache"
    knob: ClassVar[str] = "threshold"

    first: int = field(default=8, validator=[instance_of(int), ge(1)])
    last: int = field(default=0, validator=[instance_of(int), ge(0)])
    threshold: float = field(default=0.08, validator=[instance_of((int, float)), ge(0.0)])
    warm_up: int = field(default=8, validator=[instance_of(int), ge(0)])
    most: int | None = field(default=None, validator=optional(and_(instance_of(int), ge(0))))
    in_a_row: int | None = field(default=None, validator=optional(and_(instance_of(int), ge(0))))

    @property
    def site(self) -> str:
        """Between the first blocks and the last."""
        return f"blocks[{self.first}:{-self.last if self.last else ''}]"

    @property
    def needs(self) -> Needs:
        """What the first blocks have added, and the number of the step where some are always computed."""
        return Needs(signals=("prefix",), run_length=self.warm_up > 0)

    @property
    def reuses(self) -> bool:
        """Unless a setting forbids it."""
        return self.threshold > 0.0 and self.most != 0 and self.in_a_row != 0

    def start(self, run: RunInfo) -> _Seen:
        """Return what is known: nothing yet."""
        return _Seen(None, (0,) * run.decisions, (0,) * run.decisions)

    def decide(self, step: Step, state: _Seen) -> Decision:
        """Reuse where the change is below the threshold, and a limit does not forbid it."""
        count = step.run.decisions
        if step.index is not None and step.index < self.warm_up:
            return Decision.same(False, Why.WARM_UP, count)
        if state.prefix is None or not self.reuses:
            return Decision.same(False, Why.NOTHING_YET, count)
        changes = relative_changes(step, step.signals["prefix"], state.prefix)
        reuse, reason = [], []
        for change, reused, in_a_row in zip(changes, state.reused, state.in_a_row, strict=True):
            spent = (self.most is not None and reused >= self.most) or (
                self.in_a_row is not None and in_a_row >= self.in_a_row
            )
            near = change < self.threshold
            reuse.append(near and not spent)
            reason.append(Why.FAR if not near else Why.LIMIT if spent else Why.NEAR)
        return Decision(tuple(reuse), tuple(reason), changes, (float(self.threshold),) * count, False)

    def observe(self, step: Step, decision: Decision, output: Tensor, state: _Seen) -> _Seen:
        """Note what the first blocks added where all ran, and count the reuses."""
        if not self.reuses:
            return state
        return _Seen(
            step.merge(state.prefix, step.signals["prefix"], decision.reuse),
            tuple(count + again for count, again in zip(state.reused, decision.reuse, strict=True)),
            tuple(count + 1 if again else 0 for count, again in zip(state.in_a_row, decision.reuse, strict=True)),
        )
