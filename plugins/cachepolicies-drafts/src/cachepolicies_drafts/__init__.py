"""Methods that look into the network, or ahead: FirstBlockCache, DBCache, DiCache, FoCa, FreqCa, MeanCache, SpeCa."""

from cachepolicies_drafts.aligned import Aligned as Aligned
from cachepolicies_drafts.bands import Bands as Bands
from cachepolicies_drafts.dbcache import DBCache as DBCache
from cachepolicies_drafts.dicache import DiCache as DiCache
from cachepolicies_drafts.first_block import FirstBlock as FirstBlock
from cachepolicies_drafts.foca import FoCa as FoCa
from cachepolicies_drafts.focacache import FoCaCache as FoCaCache
from cachepolicies_drafts.freqca import FreqCa as FreqCa
from cachepolicies_drafts.interval import Interval as Interval
from cachepolicies_drafts.mean_velocity import MeanVelocity as MeanVelocity
from cachepolicies_drafts.meancache import MeanCache as MeanCache
from cachepolicies_drafts.speca import SpeCa as SpeCa

__all__ = [
    "Aligned",
    "Bands",
    "DBCache",
    "DiCache",
    "FirstBlock",
    "FoCa",
    "FoCaCache",
    "FreqCa",
    "Interval",
    "MeanCache",
    "MeanVelocity",
    "SpeCa",
]
