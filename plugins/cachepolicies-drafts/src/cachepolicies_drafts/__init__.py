"""Published methods that look into the network before they decide: FirstBlockCache, DBCache, DiCache and SpeCa."""

from cachepolicies_drafts.aligned import Aligned as Aligned
from cachepolicies_drafts.dbcache import DBCache as DBCache
from cachepolicies_drafts.dicache import DiCache as DiCache
from cachepolicies_drafts.first_block import FirstBlock as FirstBlock
from cachepolicies_drafts.speca import SpeCa as SpeCa

__all__ = ["Aligned", "DBCache", "DiCache", "FirstBlock", "SpeCa"]
