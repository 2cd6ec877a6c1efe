"""LeMiCa (arXiv 2511.00090) for cachepolicies: its objective, and the policy that plans with it."""

from cachepolicies_lemica.lemica import FollowsPlan as FollowsPlan
from cachepolicies_lemica.lemica import LeMiCa as LeMiCa
from cachepolicies_lemica.objective import LexicographicMinimax as LexicographicMinimax

__all__ = ["FollowsPlan", "LeMiCa", "LexicographicMinimax"]
