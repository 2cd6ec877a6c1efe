"""Scores: the predicted RMS change of the output since its last refreshes, in one unit whatever the substitute."""

from cachepolicies.contracts.score import Score as Score
from cachepolicies.contracts.score import ScoreSettings as ScoreSettings
from cachepolicies.scores.bound import Bound as Bound
from cachepolicies.scores.bound import BoundSettings as BoundSettings
from cachepolicies.scores.by_substitute import BySubstitute as BySubstitute
from cachepolicies.scores.correlated import Correlated as Correlated
from cachepolicies.scores.correlated import CorrelatedSettings as CorrelatedSettings
from cachepolicies.scores.displacement import Displacement as Displacement
from cachepolicies.scores.extrapolated import Extrapolated as Extrapolated
from cachepolicies.scores.resolve import as_score as as_score
from cachepolicies.scores.resolve import score_name as score_name
from cachepolicies.scores.resolve import score_of as score_of

__all__ = [
    "Bound",
    "BoundSettings",
    "BySubstitute",
    "Correlated",
    "CorrelatedSettings",
    "Displacement",
    "Extrapolated",
    "Score",
    "ScoreSettings",
    "as_score",
    "score_name",
    "score_of",
]
