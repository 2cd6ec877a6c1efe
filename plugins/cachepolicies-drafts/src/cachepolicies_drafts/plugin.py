"""The hooks: policies, and the stand-ins of DiCache, FoCa, FreqCa and MeanCache."""

from cachepolicies.hookspecs import Register, hookimpl
from cachepolicies_drafts.aligned import Aligned
from cachepolicies_drafts.bands import Bands
from cachepolicies_drafts.dbcache import DBCache
from cachepolicies_drafts.dicache import DiCache
from cachepolicies_drafts.first_block import FirstBlock
from cachepolicies_drafts.foca import FoCa
from cachepolicies_drafts.focacache import FoCaCache
from cachepolicies_drafts.freqca import FreqCa
from cachepolicies_drafts.mean_velocity import MeanVelocity
from cachepolicies_drafts.meancache import MeanCache
from cachepolicies_drafts.speca import SpeCa


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policies."""
    register("dbcache", DBCache, "Reuses the middle blocks while the first ones changed little.")
    register("dicache", DiCache, "Reuses all blocks but a probe while its changes sum up to little.")
    register("first-block", FirstBlock, "Reuses all blocks but the first while what it adds changed little.")
    register("focacache", FoCaCache, "Computes every n-th step and forecasts the others, predictor and corrector.")
    register("freqca", FreqCa, "Computes every n-th step; holds the low frequencies, forecasts the high ones.")
    register("meancache", MeanCache, "Computes the steps of a plan; between them the velocity follows the path.")
    register("speca", SpeCa, "Drafts the stack, and runs its last block to verify the draft.")


@hookimpl
def cachepolicies_register_substitutes(register: Register) -> None:
    """Register the substitutes."""
    register("aligned", Aligned, "Combines the last two residuals as the first blocks say (DiCache).")
    register("bands", Bands, "One substitute for the low frequencies, another for the high ones (FreqCa).")
    register("foca", FoCa, "A two-step forecast on its own values, corrected from the last evaluation (FoCa).")
    register("meanvelocity", MeanVelocity, "Continues the last velocity by the path of the latents (MeanCache).")
