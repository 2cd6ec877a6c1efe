"""From what a caller names a site by to a site."""

from __future__ import annotations

from cachepolicies.base.errors import PluginError, SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.registry.load import sites
from cachepolicies.sites.joined import Joined
from cachepolicies.sites.layers import Pattern
from cachepolicies.sites.ranges import written_range
from cachepolicies.sites.submodule import Submodule


def as_site(value: str | Site) -> Site:
    """Return the site that a value stands for.

    Args:
        value: a registered name or spec, the path of a submodule as ``named_modules`` spells it, a pattern of such
            paths (``"blocks.*.attn1"``), a range of the block stack (``"blocks[2:10]"``), several of them joined by
            ``+``, or a site.

    Raises:
        SettingsError: it is nothing of the kind, or a setting is wrong.
        PluginError: what is registered under the name makes no site.
    """
    if isinstance(value, Site):
        return value
    if not isinstance(value, str) or not value:
        names = ", ".join(repr(name) for name in sites().names())
        raise SettingsError(
            f"site is {shown(value)}; it is one of {names}, the path of a submodule or a "
            "pattern of them, several of these joined by '+', or a Site"
        )
    if value.partition(":")[0].strip() not in sites():
        written = written_range(value)
        if written is not None:
            return written
        if "+" in value:
            return Joined(tuple(as_site(part.strip()) for part in value.split("+")))
        return Pattern(value) if "*" in value else Submodule(value)
    made: object = sites().create(value)
    if not isinstance(made, Site):
        raise PluginError(f"site {value!r} made a {type(made).__name__}; a factory returns a cachepolicies.Site")
    return made


def resolved_site(value: str | Site, setup: Setup) -> ResolvedSite:
    """Return a site on the model of a set-up; raises as `as_site`, and as the site's ``resolve``.

    Raises:
        PluginError: ``resolve`` returned something else.
    """
    site = as_site(value)
    made: object = site.resolve(setup)
    if not isinstance(made, ResolvedSite):
        raise PluginError(f"site {site.name!r} resolved to a {type(made).__name__}, not to a ResolvedSite")
    return made
