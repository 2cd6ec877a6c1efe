"""The site: every block of the stack is a place of its own."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from cachepolicies import Setup, Site
from cachepolicies.adapters import adapter_of, blocks_of
from cachepolicies.sites import ModulesSite, outside_signals


@frozen
class EveryBlock(Site):
    """Cuts at the output of every block that the network's adapter knows, in the order in which they run."""

    name: ClassVar[str] = "every-block"

    def resolve(self, setup: Setup) -> ModulesSite:
        """Return the blocks of the network.

        Raises:
            NeedsError: there is no network, or no adapter for its class.
        """
        network = setup.network_for(self.name)
        adapter = adapter_of(network) if setup.adapter is None else setup.adapter
        blocks = {path: block for path, (block, _) in blocks_of(network, adapter).items()}
        return ModulesSite(self.name, network, blocks, outside_signals(setup))
