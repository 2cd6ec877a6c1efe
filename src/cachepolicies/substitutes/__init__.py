"""Substitutes: what stands in for a skipped evaluation, one file each."""

from cachepolicies.contracts.substitute import Context as Context
from cachepolicies.contracts.substitute import Extrapolation as Extrapolation
from cachepolicies.contracts.substitute import Prediction as Prediction
from cachepolicies.substitutes._extrapolation import steps_by_differences as steps_by_differences
from cachepolicies.substitutes.by_place import ByPlace as ByPlace
from cachepolicies.substitutes.hermite import Hermite as Hermite
from cachepolicies.substitutes.hold import Hold as Hold
from cachepolicies.substitutes.linear import Linear as Linear
from cachepolicies.substitutes.quadratic import Quadratic as Quadratic
from cachepolicies.substitutes.residual import Residual as Residual
from cachepolicies.substitutes.resolve import as_substitute as as_substitute
from cachepolicies.substitutes.taylor import Taylor as Taylor

__all__ = [
    "ByPlace",
    "Context",
    "Extrapolation",
    "Hermite",
    "Hold",
    "Linear",
    "Prediction",
    "Quadratic",
    "Residual",
    "Taylor",
    "as_substitute",
]
