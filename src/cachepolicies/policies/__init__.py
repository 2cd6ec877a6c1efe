"""Policies: when an evaluation may be skipped, one file each."""

from cachepolicies.policies.never import Never as Never
from cachepolicies.policies.sencache import SenCache as SenCache
from cachepolicies.policies.uniform import Uniform as Uniform

__all__ = ["Never", "SenCache", "Uniform"]
