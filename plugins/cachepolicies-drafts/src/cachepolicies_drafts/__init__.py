"""Published methods that look into the network before they decide: FirstBlockCache, DBCache and DiCache."""

from cachepolicies_drafts.aligned import Aligned as Aligned
from cachepolicies_drafts.dbcache import DBCache as DBCache
from cachepolicies_drafts.dicache import DiCache as DiCache
from cachepolicies_drafts.first_block import FirstBlock as FirstBlock

__all__ = ["Aligned", "DBCache", "DiCache", "FirstBlock"]
