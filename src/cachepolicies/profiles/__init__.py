"""Profiles: what calibration measured or authors published for one model, as a file; read, find, match, show."""

from __future__ import annotations

from cachepolicies.base.models import config_hash as config_hash
from cachepolicies.base.models import model_class_name as model_class_name
from cachepolicies.base.models import weights_hash as weights_hash
from cachepolicies.profiles.io import read_profile as read_profile
from cachepolicies.profiles.io import save_profile as save_profile
from cachepolicies.profiles.load import load_profile as load_profile
from cachepolicies.profiles.load import shipped_profiles as shipped_profiles
from cachepolicies.profiles.match import check_profile as check_profile
from cachepolicies.profiles.plot import plot_magnitude_ratios as plot_magnitude_ratios
from cachepolicies.profiles.plot import plot_polynomial as plot_polynomial
from cachepolicies.profiles.plot import plot_sensitivities as plot_sensitivities
from cachepolicies.profiles.schema import Curve as Curve
from cachepolicies.profiles.schema import Interpolation as Interpolation
from cachepolicies.profiles.schema import ModelInfo as ModelInfo
from cachepolicies.profiles.schema import Origin as Origin
from cachepolicies.profiles.schema import Polynomial as Polynomial
from cachepolicies.profiles.schema import Profile as Profile
from cachepolicies.profiles.schema import PublishedProfile as PublishedProfile
from cachepolicies.profiles.schema import Recommendation as Recommendation
from cachepolicies.profiles.schema import SchedulerInfo as SchedulerInfo
from cachepolicies.profiles.schema import Trials as Trials
from cachepolicies.profiles.summary import summarise as summarise

__all__ = [
    "Curve",
    "Interpolation",
    "ModelInfo",
    "Origin",
    "Polynomial",
    "Profile",
    "PublishedProfile",
    "Recommendation",
    "SchedulerInfo",
    "Trials",
    "check_profile",
    "config_hash",
    "load_profile",
    "model_class_name",
    "plot_magnitude_ratios",
    "plot_polynomial",
    "plot_sensitivities",
    "read_profile",
    "save_profile",
    "shipped_profiles",
    "summarise",
    "weights_hash",
]
