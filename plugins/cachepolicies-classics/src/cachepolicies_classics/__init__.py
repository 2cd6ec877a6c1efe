"""Published methods that reuse parts of a network: AdaCache, DeepCache, Delta-DiT, FORA and PAB, one file each."""

from cachepolicies_classics.adacache import AdaCache as AdaCache
from cachepolicies_classics.deepcache import DeepCache as DeepCache
from cachepolicies_classics.delta_dit import DeltaDiT as DeltaDiT
from cachepolicies_classics.fora import FORA as FORA
from cachepolicies_classics.front_and_rear import FrontAndRear as FrontAndRear
from cachepolicies_classics.pab import PAB as PAB

__all__ = ["FORA", "PAB", "AdaCache", "DeepCache", "DeltaDiT", "FrontAndRear"]
