"""Sites: where an evaluation is cut, one file each."""

from cachepolicies.contracts.site import ResolvedSite as ResolvedSite
from cachepolicies.contracts.site import Site as Site
from cachepolicies.engine.call import Arrival as Arrival
from cachepolicies.engine.engine import ServedCall as ServedCall
from cachepolicies.engine.invocation import Invocation as Invocation
from cachepolicies.sites.blocks import BlocksSite as BlocksSite
from cachepolicies.sites.blocks import BlockStack as BlockStack
from cachepolicies.sites.grid import TokenGrid as TokenGrid
from cachepolicies.sites.joined import Joined as Joined
from cachepolicies.sites.latent import SpatialLatent as SpatialLatent
from cachepolicies.sites.layers import Layers as Layers
from cachepolicies.sites.layers import Pattern as Pattern
from cachepolicies.sites.layers import layers_of as layers_of
from cachepolicies.sites.modules import ModulesSite as ModulesSite
from cachepolicies.sites.output import Output as Output
from cachepolicies.sites.output import OutputSite as OutputSite
from cachepolicies.sites.ranges import BlockRange as BlockRange
from cachepolicies.sites.ranges import Range as Range
from cachepolicies.sites.ranges import RangesSite as RangesSite
from cachepolicies.sites.ranges import range_of as range_of
from cachepolicies.sites.resolve import as_site as as_site
from cachepolicies.sites.signals import outside_signals as outside_signals
from cachepolicies.sites.skip_branch import SkipBranch as SkipBranch
from cachepolicies.sites.skip_branch import SkipBranchSite as SkipBranchSite
from cachepolicies.sites.submodule import Submodule as Submodule
from cachepolicies.sites.submodule import SubmoduleSite as SubmoduleSite

__all__ = [
    "Arrival",
    "BlockRange",
    "BlockStack",
    "BlocksSite",
    "Invocation",
    "Joined",
    "Layers",
    "ModulesSite",
    "Output",
    "OutputSite",
    "Pattern",
    "Range",
    "RangesSite",
    "ResolvedSite",
    "ServedCall",
    "Site",
    "SkipBranch",
    "SkipBranchSite",
    "SpatialLatent",
    "Submodule",
    "SubmoduleSite",
    "TokenGrid",
    "as_site",
    "layers_of",
    "outside_signals",
    "range_of",
]
