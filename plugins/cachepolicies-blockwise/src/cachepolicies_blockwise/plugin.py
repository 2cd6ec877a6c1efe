"""The hooks: a policy, a site and a signal."""

from cachepolicies.hookspecs import Register, hookimpl
from cachepolicies_blockwise.alternate_blocks import AlternateBlocks
from cachepolicies_blockwise.every_block import EveryBlock
from cachepolicies_blockwise.latent_rms import LatentRms


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policy."""
    register("alternate-blocks", AlternateBlocks, "Holds every m-th place at every n-th step.")


@hookimpl
def cachepolicies_register_sites(register: Register) -> None:
    """Register the site."""
    register("every-block", EveryBlock, "Every block of the stack, a place each.")


@hookimpl
def cachepolicies_register_signals(register: Register) -> None:
    """Register the signal."""
    register("latent-rms", LatentRms, "The RMS of the latent.")
