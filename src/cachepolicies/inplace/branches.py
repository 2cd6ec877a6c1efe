"""Which guidance branch a call belongs to, where the pipeline does not say: told from its conditioning."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from cachepolicies.base.errors import RunError
from cachepolicies.engine.conditioning import differs, same_objects, weakly

_MOST = 8
"""More branches than any guidance has: the conditioning is not what tells them apart."""


@define(eq=False)
class _Known:
    name: str
    conditioning: tuple[Any, ...]
    steady: bool = False


@define(eq=False)
class BranchRecogniser:
    """Names the branches of one run by their conditioning.

    A pipeline hands the same prompt embeddings to every call of a branch, whatever their order, and whether or not a
    branch is left out at some steps. A conditioning that was not seen before is a branch of its own, with nothing to
    reuse. Where the conditioning of an only branch changes from step to step (a ControlNet's features, say), it cannot
    tell branches apart; then there must be one call a step.
    """

    _known: list[_Known] = field(factory=list)
    _t: float | None = None
    _varies: bool = False
    _strangers: int = 0

    def name(self, t: float, conditioning: tuple[Any, ...]) -> str:
        """Return the name of the branch of a call.

        Args:
            t: noise level of the call.
            conditioning: every argument but x and t; only weak references to its tensors are kept.

        Raises:
            RunError: the conditioning varies from step to step, and there are several calls at one t.
        """
        again, self._t = t == self._t, t
        if self._varies:
            if again:
                raise RunError(
                    f"the model was called again at t={t:g}, and its conditioning changes at every step, so that "
                    'guidance branches cannot be told apart; name them: `with model.cache_context("cond"):` around '
                    'the call, and "uncond"'
                )
            return self._known[0].name
        # By identity first: it costs nothing, while comparing values waits for the device.
        for alike in (same_objects, _same_values):
            for known in self._known:
                if alike(known.conditioning, conditioning):
                    known.steady = known.steady or not again
                    known.conditioning = weakly(conditioning)
                    self._strangers = 0
                    return known.name
        if not again and self._known and not any(known.steady for known in self._known):
            self._strangers += 1
            if self._strangers > 1:
                self._varies = True
                return self._known[0].name
        if len(self._known) == _MOST:
            raise RunError(
                f"more than {_MOST} different conditionings in one run; name the branches with "
                '`with model.cache_context("cond"):`'
            )
        name = f"branch {len(self._known) + 1}"
        self._known.append(_Known(name, weakly(conditioning)))
        return name


def _same_values(known: tuple[Any, ...], conditioning: tuple[Any, ...]) -> bool:
    return not differs(known, conditioning)
