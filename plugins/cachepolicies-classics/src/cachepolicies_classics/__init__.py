"""Published methods that reuse parts of a network: AdaCache, DeepCache, Delta-DiT, FasterCache, FORA and PAB."""

from cachepolicies_classics.adacache import AdaCache as AdaCache
from cachepolicies_classics.cfg_cache import CFGCache as CFGCache
from cachepolicies_classics.deepcache import DeepCache as DeepCache
from cachepolicies_classics.delta_dit import DeltaDiT as DeltaDiT
from cachepolicies_classics.fastercache import FasterCache as FasterCache
from cachepolicies_classics.fora import FORA as FORA
from cachepolicies_classics.from_branch import FromBranch as FromBranch
from cachepolicies_classics.front_and_rear import FrontAndRear as FrontAndRear
from cachepolicies_classics.last_change import LastChange as LastChange
from cachepolicies_classics.pab import PAB as PAB

__all__ = [
    "FORA",
    "PAB",
    "AdaCache",
    "CFGCache",
    "DeepCache",
    "DeltaDiT",
    "FasterCache",
    "FromBranch",
    "FrontAndRear",
    "LastChange",
]
