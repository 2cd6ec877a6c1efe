"""The records that a profile is made of, under one name."""

from __future__ import annotations

from cachepolicies.profiles.format import RECALIBRATE as RECALIBRATE
from cachepolicies.profiles.format import Array as Array
from cachepolicies.profiles.format import Interpolation as Interpolation
from cachepolicies.profiles.format import Origin as Origin
from cachepolicies.profiles.format import Trajectory as Trajectory
from cachepolicies.profiles.measured import Profile as Profile
from cachepolicies.profiles.parts import Curve as Curve
from cachepolicies.profiles.parts import ModelInfo as ModelInfo
from cachepolicies.profiles.parts import Polynomial as Polynomial
from cachepolicies.profiles.parts import Recommendation as Recommendation
from cachepolicies.profiles.parts import SchedulerInfo as SchedulerInfo
from cachepolicies.profiles.parts import Trials as Trials
from cachepolicies.profiles.published import PublishedProfile as PublishedProfile
