"""Substitutes: what stands in for a skipped evaluation, one file each."""

from cachepolicies._substitute import Extrapolation as Extrapolation
from cachepolicies._substitute import Guarded as Guarded
from cachepolicies._substitute import InSchedulerTime as InSchedulerTime
from cachepolicies._substitute import ManyCoefficients as ManyCoefficients
from cachepolicies._substitute import Noted as Noted
from cachepolicies._substitute import Prediction as Prediction
from cachepolicies.substitutes.hermite import Hermite as Hermite
from cachepolicies.substitutes.hold import Hold as Hold
from cachepolicies.substitutes.linear import Linear as Linear
from cachepolicies.substitutes.quadratic import Quadratic as Quadratic
from cachepolicies.substitutes.taylor import Taylor as Taylor

__all__ = [
    "Extrapolation",
    "Guarded",
    "Hermite",
    "Hold",
    "InSchedulerTime",
    "Linear",
    "ManyCoefficients",
    "Noted",
    "Prediction",
    "Quadratic",
    "Taylor",
]
