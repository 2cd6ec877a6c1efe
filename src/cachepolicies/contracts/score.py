"""The contract of a score: *how far* will the output have moved since it was last computed?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachepolicies.contracts.declared import Contract
from cachepolicies.contracts.policy import Needs

if TYPE_CHECKING:
    from cachepolicies.contracts.setup import Setup


class ScoreSettings(Contract, declares=True):
    """What a policy names a score by: frozen settings, resolved on a profile and a substitute."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in traces and errors; a class attribute."""

    @abstractmethod
    def resolve(self, setup: Setup) -> Score:
        """Return the score that works in this set-up.

        Args:
            setup: profile, substitute and scheduler.

        Raises:
            NeedsError: the profile lacks what the score is made from, or there is none.
            SettingsError: the score does not go with this substitute.
        """


class Score(ScoreSettings, declares=True):
    """Predicts the RMS error of a reuse. Frozen, without state; one object serves any number of runs and threads.

    Whatever the score and the substitute, the unit is the same, an RMS change of the output, so that a tolerance keeps
    its meaning. Only ``at`` has to be written.
    """

    @property
    def order(self) -> int:
        """How many refreshes beyond the newest it looks at: 0 for hold, p for an extrapolation of order p."""
        return 0

    @property
    def growth(self) -> float:
        """Exponent q > 0: at equal spacing, the score of a refresh l steps back grows like l^q (first order: 1)."""
        return 1.0

    @property
    def needs(self) -> Needs:
        """The curves and tables of the profile that it was made from."""
        return Needs()

    def resolve(self, setup: Setup) -> Score:
        """Return the score that works in this set-up; the score itself unless it says otherwise."""
        return self

    @abstractmethod
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
