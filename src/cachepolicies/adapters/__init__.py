"""Adapters: where the block stack of a model class is, one file a family of models."""

from cachepolicies.adapters.find import adapter_of as adapter_of
from cachepolicies.adapters.find import blocks_of as blocks_of
from cachepolicies.adapters.find import network_of as network_of
from cachepolicies.contracts.adapter import CROSS as CROSS
from cachepolicies.contracts.adapter import MLP as MLP
from cachepolicies.contracts.adapter import SPATIAL as SPATIAL
from cachepolicies.contracts.adapter import TEMPORAL as TEMPORAL
from cachepolicies.contracts.adapter import Adapter as Adapter
from cachepolicies.contracts.adapter import Blocks as Blocks
from cachepolicies.contracts.adapter import BlockSignal as BlockSignal
from cachepolicies.contracts.adapter import Clock as Clock
from cachepolicies.contracts.adapter import HandsOn as HandsOn
from cachepolicies.contracts.adapter import OutputOf as OutputOf
from cachepolicies.contracts.adapter import Rows as Rows
from cachepolicies.contracts.adapter import TokensOf as TokensOf

__all__ = [
    "CROSS",
    "MLP",
    "SPATIAL",
    "TEMPORAL",
    "Adapter",
    "BlockSignal",
    "Blocks",
    "Clock",
    "HandsOn",
    "OutputOf",
    "Rows",
    "TokensOf",
    "adapter_of",
    "blocks_of",
    "network_of",
]
