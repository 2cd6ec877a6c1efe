"""The contract of a score: *how far* will the output have moved since it was last computed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from cachepolicies._policy import Needs


@runtime_checkable
class Score(Protocol):
    """Predicts the RMS error of a reuse. Frozen, without state; one object serves any number of runs and threads.

    Whatever the score and the substitute, the unit is the same, an RMS change of the output, so that a tolerance keeps
    its meaning.
    """

    name: ClassVar[str]
    """Short name, shown in traces and errors."""

    @property
    def order(self) -> int:
        """How many refreshes beyond the newest it looks at: 0 for hold, p for an extrapolation of order p."""
        ...

    @property
    def growth(self) -> float:
        """Exponent q > 0: at equal spacing, the score of a refresh l steps back grows like l^q (first order: 1)."""
        ...

    @property
    def needs(self) -> Needs:
        """The curves and tables of the profile that it was made from."""
        ...

    def at(self, refreshes: Sequence[float], t: float, displacement: float) -> float:
        """Return the score of a reuse at t; called once a sample and step, so it takes microseconds.

        Args:
            refreshes: t of the last refreshes, newest first, at least one. Where there are fewer than ``order + 1``,
                the score is that of the lower order.
            t: where the output would be reused.
            displacement: RMS distance of the latent from where it was at the newest refresh.

        Returns:
            Predicted RMS error of the substitute's output, at least 0.
        """
        ...
