"""Substitutes: what stands in for a skipped evaluation, one file each."""

from cachepolicies.substitutes.hold import Hold as Hold

__all__ = ["Hold"]
