"""Several sites as one: the places of all of them, ``"attention+mlp"`` or ``"blocks[:14]+blocks[14:]"``."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from torch import nn

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.sites.modules import ModulesSite
from cachepolicies.sites.output import Output
from cachepolicies.sites.ranges import RangesSite
from cachepolicies.sites.signals import outside_signals
from cachepolicies.sites.whole import OutputAndModulesSite


@frozen
class Joined(Site):
    """The places of several sites together, written ``"attention+mlp"``.

    Attributes:
        sites: all of them cut at the outputs of modules, or all of them around ranges of the block stack. In front of
            those at modules may stand the denoiser's own output, ``"output+attention+mlp"``: whatever reuses that skips
            the call, and the places inside are not reached.
    """

    name: ClassVar[str] = "joined"

    sites: tuple[Site, ...]

    def resolve(self, setup: Setup) -> ResolvedSite:
        """Return the places of all of them; raises as each.

        Raises:
            SettingsError: they are of different sorts, or two have a module in common.
        """
        first, *others = self.sites
        if isinstance(first, Output) and others:
            inside = (others[0] if len(others) == 1 else Joined(tuple(others))).resolve(setup)
            whole = f"{first.name}+{inside.name}"
            if not isinstance(inside, ModulesSite):
                raise SettingsError(f"site {whole!r}: behind 'output' stand kinds of modules or patterns of paths")
            return OutputAndModulesSite(inside, setup.network_for(whole), whole, outside_signals(setup))
        resolved = [site.resolve(setup) for site in self.sites]
        names = "+".join(site.name for site in resolved)
        network, signals = setup.network_for(names), outside_signals(setup)
        if all(isinstance(site, RangesSite) for site in resolved):
            ranges = [each for site in resolved if isinstance(site, RangesSite) for each in site.ranges.values()]
            return RangesSite(names, network, ranges, signals)
        modules: dict[str, nn.Module] = {}
        kinds: dict[str, str] = {}
        for site in resolved:
            if not isinstance(site, ModulesSite):
                raise SettingsError(
                    f"site {names!r}: {site.name!r} cannot be joined with the others; kinds of modules, as attention "
                    "and mlp, and patterns of paths can be joined, and so can ranges of blocks"
                )
            again = sorted(modules.keys() & site.modules.keys())
            if again:
                raise SettingsError(f"site {names!r}: two of its parts have {again[0]!r} in common")
            modules.update(site.modules)
            kinds.update(site.kinds)

        def find() -> dict[str, nn.Module]:
            found: dict[str, nn.Module] = {}
            for site in resolved:
                if isinstance(site, ModulesSite):
                    site.find_again()
                    found.update(site.modules)
            return found

        return ModulesSite(names, network, modules, signals, kinds=kinds, find=find)
