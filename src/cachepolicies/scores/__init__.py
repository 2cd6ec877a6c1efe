"""Scores: the predicted RMS change of the output since its last refreshes, in one unit whatever the substitute."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cachepolicies._errors import NeedsError, SettingsError, nearest_match_hint
from cachepolicies._substitute import Extrapolation, Substitute
from cachepolicies.profiles.schema import RECALIBRATE, Interpolation, Profile
from cachepolicies.scores.base import Score as Score
from cachepolicies.scores.bound import Bound as Bound
from cachepolicies.scores.correlated import Correlated as Correlated
from cachepolicies.scores.displacement import Displacement as Displacement
from cachepolicies.scores.extrapolated import Extrapolated as Extrapolated

ScoreKind: TypeAlias = Literal["substitute", "bound", "correlated"]
"""Which score to use: the one that fits the substitute, the paper's, or the sharper one of the paper's kind."""

SCORES: tuple[ScoreKind, ...] = ("substitute", "bound", "correlated")

__all__ = [
    "SCORES",
    "Bound",
    "Correlated",
    "Displacement",
    "Extrapolated",
    "Score",
    "ScoreKind",
    "score_name",
    "score_of",
]


def score_of(
    kind: ScoreKind, profile: Profile | None, substitute: Substitute, interpolation: Interpolation = "linear"
) -> Score:
    """Return the score of a kind for a profile and a substitute.

    ``"substitute"`` is `Bound` for a substitute of order 0, `Extrapolated` for a higher one. A substitute that does not
    say how it extrapolates (it does not follow `cachepolicies._substitute.Extrapolation`) is judged as hold is: by
    `Bound`, which predicts the change of the output and knows nothing of what stands in for it.

    Args:
        kind: ``"substitute"``, ``"bound"`` or ``"correlated"``.
        profile: what calibration measured.
        substitute: what stands in, its time resolved.
        interpolation: how curves are read between calibrated timesteps.

    Raises:
        SettingsError: unknown kind or interpolation; ``"correlated"`` for a substitute that extrapolates.
        NeedsError: there is no profile, or it lacks what the score is made from.
        PolicyError: see `Extrapolated`.
    """
    if kind not in SCORES:
        raise SettingsError(f"unknown score {kind!r}: {nearest_match_hint(str(kind), SCORES)}")
    if profile is None:
        raise NeedsError(f"the score {kind!r} needs a profile; {RECALIBRATE}")
    extrapolates = isinstance(substitute, Extrapolation) and substitute.order > 0
    if kind == "correlated":
        if extrapolates:
            raise SettingsError(
                f"the score 'correlated' predicts how far the output moves, which is the error of hold and not that of "
                f"the extrapolation {substitute.name!r}; use score='substitute', or 'bound' to be on the safe side"
            )
        return Correlated(profile, interpolation)
    if kind == "substitute" and isinstance(substitute, Extrapolation) and extrapolates:
        return Extrapolated(profile, substitute)
    return Bound(profile, interpolation)


def score_name(substitute: Substitute) -> str:
    """Return the name of the score that ``"substitute"`` stands for; see `score_of`."""
    extrapolates = isinstance(substitute, Extrapolation) and substitute.order > 0
    return Extrapolated.name if extrapolates else Bound.name
