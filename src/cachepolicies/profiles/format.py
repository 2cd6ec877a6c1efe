"""The format of profiles as files, and the words in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from cachepolicies.base.documents import DocumentFormat
from cachepolicies.base.errors import ProfileError

Interpolation: TypeAlias = Literal["nearest", "linear"]
"""How a curve is read between its points."""

Trajectory: TypeAlias = Literal["model", "noised", "recorded"]
"""Where the calibration points lie: on runs of the model itself, or on data with noise added."""

Array: TypeAlias = NDArray[Any]

RECALIBRATE = "calibrate again with `cachepolicies calibrate` or cachepolicies.calibration.calibrate"
"""The remedy that most messages end with."""

RETRY = "try the plans again with `cachepolicies trials` or cachepolicies.calibration.try_plans"
"""The remedy for trials."""

PROFILE = DocumentFormat(
    noun="profile",
    name="cachepolicies-profile",
    version=3,
    older=(1, 2),
    error=ProfileError,
    again="calibrate again",
    remedy=RECALIBRATE,
)
"""The format of profiles as files."""

DEFAULT_UNITS: Mapping[str, str] = {
    "norm": "root mean square per element of one sample, ||v||_2 / sqrt(numel), in float32 or wider",
    "t": "the scheduler's t, as the denoiser is called with",
    "alpha_x": "RMS change of the output per RMS change of x (dimensionless)",
    "alpha_t": "RMS change of the output per unit of t",
    "rho": "correlation of the output's changes with x and with t (dimensionless)",
    "weight": "RMS change of the sample per RMS change of the output at a step (dimensionless)",
    "displacement": "RMS change of x between two steps",
    "change": "RMS change of the output between two steps",
    "magnitude_ratio": "size of the residual over that at the step before (dimensionless)",
    "signal_change": "relative L1 change of a signal between two steps (dimensionless)",
    "output_change": "relative L1 change of the output between two steps (dimensionless)",
}
"""Units of the curves and tables that `cachepolicies.calibration.calibrate` writes."""

Origin: TypeAlias = Literal["measured", "published"]
"""Whether a calibration of this library measured a profile, or its numbers were published by a method's authors."""
