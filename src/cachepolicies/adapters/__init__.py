"""Adapters: where the block stack of a model class is, one file a family of models."""

from cachepolicies.adapters.base import Adapter as Adapter
from cachepolicies.adapters.base import Blocks as Blocks
from cachepolicies.adapters.base import BlockSignal as BlockSignal
from cachepolicies.adapters.base import Clock as Clock
from cachepolicies.adapters.base import HandsOn as HandsOn
from cachepolicies.adapters.base import OutputOf as OutputOf
from cachepolicies.adapters.base import Rows as Rows
from cachepolicies.adapters.find import adapter_of as adapter_of
from cachepolicies.adapters.find import network_of as network_of

__all__ = ["Adapter", "BlockSignal", "Blocks", "Clock", "HandsOn", "OutputOf", "Rows", "adapter_of", "network_of"]
