"""Which guidance branch a call belongs to, where the pipeline does not say: told from its conditioning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from attrs import define, field

from cachepolicies.engine.conditioning import Conditioned, differs, same_objects, text_of

_MOST = 8
"""More branches than any guidance has; of more, those that were not called for the longest time are forgotten."""


@define(eq=False)
class _Known:
    name: str
    conditioned: Conditioned
    call: int


@define(eq=False)
class BranchRecogniser:
    """Names the branches of one run by their conditioning.

    A pipeline hands the same prompt embeddings to every call of a branch, whatever their order, and whether or not a
    branch is left out at some steps. Where other arguments differ from step to step (a ControlNet's features under
    another name, say), the text tells: it is the branch with that text which was not called at this step yet. That its
    conditioning changed is then seen by the engine, which evaluates. So it is where there was one branch and another
    text comes first at a step. Any other conditioning with another text is a branch of its own, with nothing to reuse.
    """

    _known: list[_Known] = field(factory=list)
    _calls: int = 0
    _named: int = 0

    def name(self, conditioning: Mapping[str, Any], served: Collection[str]) -> str:
        """Return the name of the branch of a call.

        Args:
            conditioning: every argument but x and t by name; none of its tensors is kept.
            served: branches that were called at this step before.
        """
        self._calls += 1
        known = self._recognised(conditioning, served)
        if known is None:
            self._named += 1
            known = _Known(f"branch {self._named}", Conditioned.of(conditioning), self._calls)
            if len(self._known) == _MOST:
                self._known.remove(min(self._known, key=lambda each: each.call))
            self._known.append(known)
        else:
            known.conditioned.note(conditioning)
        known.call = self._calls
        return known.name

    def forget_but(self, name: str) -> None:
        """Forget every branch but one: another run has begun with it."""
        self._known = [known for known in self._known if known.name == name]

    def _recognised(self, conditioning: Mapping[str, Any], served: Collection[str]) -> _Known | None:
        # By identity first: it costs nothing, while comparing values waits for the device.
        for known in self._known:
            if known.conditioned.is_steady(conditioning):
                return known
        found = self._first(lambda known: same_objects(known.conditioned.kept, conditioning))
        found = found or self._first(lambda known: not known.conditioned.changes(conditioning))
        if found is not None:
            return found
        text = text_of(conditioning)
        waiting = [
            known
            for known in self._known
            if known.name not in served and not differs(text_of(known.conditioned.kept), text)
        ]
        if not waiting and not served:
            waiting = self._known
        return waiting[0] if len(waiting) == 1 else None

    def _first(self, matches: Callable[[_Known], bool]) -> _Known | None:
        return next((known for known in self._known if matches(known)), None)
