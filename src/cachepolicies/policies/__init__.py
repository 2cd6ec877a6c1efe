"""Policies: when an evaluation may be skipped, one file each."""

from cachepolicies.policies.depth_schedule import DepthSchedule as DepthSchedule
from cachepolicies.policies.easycache import EasyCache as EasyCache
from cachepolicies.policies.magcache import MagCache as MagCache
from cachepolicies.policies.never import Never as Never
from cachepolicies.policies.schedule import Schedule as Schedule
from cachepolicies.policies.seacache import SeaCache as SeaCache
from cachepolicies.policies.sencache import SenCache as SenCache
from cachepolicies.policies.teacache import TeaCache as TeaCache
from cachepolicies.policies.uniform import Uniform as Uniform

__all__ = ["DepthSchedule", "EasyCache", "MagCache", "Never", "Schedule", "SeaCache", "SenCache", "TeaCache", "Uniform"]
