"""The score that fits the substitute: its own error, where that is known."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from cachepolicies.base.settings import one_of
from cachepolicies.contracts.score import Score, ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Extrapolation
from cachepolicies.profiles.schema import Interpolation
from cachepolicies.scores._sensitivities import profile_for
from cachepolicies.scores.bound import Bound
from cachepolicies.scores.extrapolated import Extrapolated


@frozen
class BySubstitute(ScoreSettings):
    """`Bound` for a substitute of order 0, `Extrapolated` for a higher one.

    A substitute that does not say how it extrapolates (it is no `cachepolicies.substitutes.Extrapolation`) is judged as
    hold is: by `Bound`, which predicts the change of the output and knows nothing of what stands in for it.

    Attributes:
        interpolation: how curves are read between calibrated timesteps.
    """

    name: ClassVar[str] = "substitute"

    interpolation: Interpolation = field(default="linear", validator=one_of("linear", "nearest"))

    def resolve(self, setup: Setup) -> Score:
        """Return the score for the substitute.

        Raises:
            NeedsError: there is no profile, or it lacks what the score is made from.
            PolicyError: see `Extrapolated`.
        """
        profile, substitute = profile_for(self.name, setup), setup.substitute
        if isinstance(substitute, Extrapolation) and substitute.order > 0:
            return Extrapolated(profile, substitute)
        return Bound(profile, self.interpolation)
