"""Which engine serves a run: always the same one, or one that is chosen when the run begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from cachepolicies.engine.call import Call, Declaration
    from cachepolicies.engine.engine import Engine


@frozen(eq=False)
class Chosen:
    """What serves a run.

    Attributes:
        engine: policy, substitute and the rest, resolved.
        expected: of a run that nobody declared: the timesteps that it will visit if it goes on as runs that begin like
            this did before; ``None`` where that is not known, or was declared.
        notes: what is to be said in the trace: what serves the run, and where that is from.
    """

    engine: Engine
    expected: Declaration | None = None
    notes: tuple[str, ...] = ()


class Choice(Protocol):
    """Chooses the engine of every run when it begins. An `Engine` chooses itself."""

    @property
    def latest(self) -> Engine:
        """The engine that was chosen last; before the first run, what one begins with."""

    @property
    def sentence(self) -> str:
        """What serves runs, and where that is from; empty where the user said it all."""

    def choose(self, call: Call, declaration: Declaration | None) -> Chosen:
        """Return what serves a run.

        Args:
            call: its first.
            declaration: what was said of it, ``None`` for nothing.
        """

    def unexpected(self, engine: Engine) -> Engine:
        """Return what serves the rest of a run that left the timesteps that were expected of it; never reuses."""
