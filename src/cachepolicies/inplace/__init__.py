"""Caching in place: on a module or a whole diffusers pipeline."""

from cachepolicies.inplace.enabled import Enabled as Enabled
from cachepolicies.inplace.enabled import disable as disable
from cachepolicies.inplace.enabled import enable as enable
from cachepolicies.inplace.enabled import trace as trace

__all__ = ["Enabled", "disable", "enable", "trace"]
