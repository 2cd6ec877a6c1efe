"""The hooks: policies, the site of Delta-DiT, and the stand-ins of FasterCache."""

from cachepolicies.hookspecs import Register, hookimpl
from cachepolicies_classics.adacache import AdaCache
from cachepolicies_classics.cfg_cache import CFGCache
from cachepolicies_classics.deepcache import DeepCache
from cachepolicies_classics.delta_dit import DeltaDiT
from cachepolicies_classics.fastercache import FasterCache
from cachepolicies_classics.fora import FORA
from cachepolicies_classics.from_branch import FromBranch
from cachepolicies_classics.front_and_rear import FrontAndRear
from cachepolicies_classics.l2c import L2C
from cachepolicies_classics.last_change import LastChange
from cachepolicies_classics.pab import PAB


@hookimpl
def cachepolicies_register_policies(register: Register) -> None:
    """Register the policies."""
    register("adacache", AdaCache, "Holds attention and MLPs for as long as one block's change allows.")
    register("cfg-cache", CFGCache, "Makes the unconditional branch from the conditional one at most steps.")
    register("deepcache", DeepCache, "Computes a U-Net below a skip connection at some steps only.")
    register("delta-dit", DeltaDiT, "Holds the last blocks first, and the first blocks later.")
    register("fastercache", FasterCache, "Extrapolates every attention at some steps, from a step on.")
    register("fora", FORA, "Computes every attention and every MLP at every n-th step.")
    register("l2c", L2C, "Computes at every second step only the modules that a mask keeps.")
    register("pab", PAB, "Computes each kind of attention at an interval of its own.")


@hookimpl
def cachepolicies_register_sites(register: Register) -> None:
    """Register the site."""
    register("front-and-rear", FrontAndRear, "The first blocks of the stack, and the last.")


@hookimpl
def cachepolicies_register_substitutes(register: Register) -> None:
    """Register the substitutes."""
    register("from-branch", FromBranch, "Another branch's output, and how far this one was from it last (CFG-Cache).")
    register("last-change", LastChange, "The newest output and a part of its last change (FasterCache).")
