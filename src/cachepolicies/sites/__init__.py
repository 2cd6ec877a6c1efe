"""Sites: where an evaluation is cut."""

from cachepolicies.sites.base import Invocation as Invocation
from cachepolicies.sites.base import Site as Site
from cachepolicies.sites.blocks import BlocksSite as BlocksSite
from cachepolicies.sites.output import OutputSite as OutputSite
from cachepolicies.sites.submodule import SubmoduleSite as SubmoduleSite

__all__ = ["BlocksSite", "Invocation", "OutputSite", "Site", "SubmoduleSite"]
