"""Every block as a place of its own, a policy that decides block by block, and a signal."""

from cachepolicies_blockwise.alternate_blocks import AlternateBlocks as AlternateBlocks
from cachepolicies_blockwise.every_block import EveryBlock as EveryBlock
from cachepolicies_blockwise.latent_rms import LatentRms as LatentRms

__all__ = ["AlternateBlocks", "EveryBlock", "LatentRms"]
