"""Layers as the site: every module of a kind in every block, or every module that a pattern names, a place each.

FORA (arXiv 2407.01425), PAB (2408.12588) and Learning-to-Cache (2406.01733) cut there: at what an attention or an MLP
returns, before the block applies its gate, so that a reuse is gated by the current t.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import partial
from typing import ClassVar

from attrs import field, frozen
from torch import nn

from cachepolicies.adapters.find import adapter_of, blocks_of
from cachepolicies.base.errors import SettingsError
from cachepolicies.base.foreign import inside_compiled
from cachepolicies.base.settings import a_name
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, TEMPORAL, Adapter
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import Site
from cachepolicies.sites.blocks import refuse_frozen_graphs
from cachepolicies.sites.modules import AGAIN, ModulesSite
from cachepolicies.sites.signals import outside_signals


def layers_of(network: nn.Module, adapter: Adapter) -> dict[str, tuple[nn.Module, str]]:
    """Return the modules of every kind in the blocks of a network by path, in the order of the blocks, with the kind.

    Raises:
        SettingsError: the adapter names a module that the network does not have, or one without blocks.
    """
    found: dict[str, tuple[nn.Module, str]] = {}
    for at, (block, blocks) in blocks_of(network, adapter).items():
        for kind, patterns in blocks.kinds.items():
            for pattern in patterns:
                found.update({f"{at}.{path}": (module, kind) for path, module in _matching(block, pattern).items()})
    return found


def _matching(module: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Return the modules below one whose path a pattern names, in which ``*`` stands for (a part of) any one name.

    The number of a call, behind ``#``, is kept.

    Raises:
        SettingsError: it is none.
    """
    pattern, again, number = pattern.partition(AGAIN)
    if again and (not number.isdecimal() or int(number) < 2):
        raise SettingsError(f"path {pattern + again + number!r}: behind {AGAIN} stands the number of a call, from 2")
    names = [re.compile(translate(name)) for name in pattern.split(".")]
    found: dict[str, nn.Module] = {"": module}
    for name in names:
        found = {
            f"{path}.{child}".lstrip("."): below
            for path, above in found.items()
            for child, below in (inside_compiled(above) or above).named_children()
            if name.match(child)
        }
    return {f"{path}{again}{number}": below for path, below in found.items()}


def _any_index(path: str) -> str:
    """Return a path with ``*`` in the place of every index of a list."""
    return ".".join("*" if name.isdigit() else name for name in path.split("."))


@frozen
class Layers(Site):
    """Cuts at the output of every module of some kinds, in every block, as the adapter of the network's class says.

    Attributes:
        kinds: which, ``"mlp"`` say.
        label: what stands for all of them in traces and messages.
    """

    name: ClassVar[str] = "layers"

    kinds: tuple[str, ...]
    label: str = field(validator=a_name)

    def resolve(self, setup: Setup) -> ModulesSite:
        """Return the modules of the network.

        Raises:
            NeedsError: there is no network, or no adapter for its class.
            SettingsError: the adapter knows none of these kinds; or the network runs inside one graph.
        """
        network = setup.network_for(self.label)
        refuse_frozen_graphs(network)
        adapter = adapter_of(network) if setup.adapter is None else setup.adapter
        known = layers_of(network, adapter)

        def find() -> dict[str, nn.Module]:
            return {path: module for path, (module, kind) in layers_of(network, adapter).items() if kind in self.kinds}

        chosen = {path: (module, kind) for path, (module, kind) in known.items() if kind in self.kinds}
        if not chosen:
            kinds = ", ".join(sorted({kind for _, kind in known.values()})) or "none"
            first = next(iter(blocks_of(network, adapter)))
            raise SettingsError(
                f"site {self.label!r}: the adapter of {type(network).__name__} names no such modules in its blocks (it "
                f"names: {kinds}); name them by a pattern, site='{_any_index(first)}.attn', or in the "
                "adapter, Blocks(..., kinds={'mlp': 'ff'})"
            )
        return ModulesSite(
            self.label,
            network,
            {path: module for path, (module, _) in chosen.items()},
            outside_signals(setup),
            kinds={path: kind for path, (_, kind) in chosen.items()},
            find=find,
        )


def _of(label: str, *kinds: str) -> partial[Layers]:
    return partial(Layers, kinds, label)


KINDS: Mapping[str, partial[Layers]] = {
    "attention": _of("attention", SPATIAL, TEMPORAL, CROSS),
    SPATIAL: _of(SPATIAL, SPATIAL),
    TEMPORAL: _of(TEMPORAL, TEMPORAL),
    CROSS: _of(CROSS, CROSS),
    MLP: _of(MLP, MLP),
}
"""What makes each of the sites that have a name."""

attention, spatial_attention, temporal_attention, cross_attention, mlp = KINDS.values()


@frozen
class Pattern(Site):
    """Cuts at the output of every module whose path a pattern names.

    Attributes:
        pattern: a path as ``named_modules`` spells it, in which ``*`` stands for (a part of) any one name:
            ``"transformer_blocks.*.attn1"``. Of a module that runs several times in a call, ``"blocks.*.ff#2"`` is the
            second.
    """

    name: ClassVar[str] = "modules"

    pattern: str = field(validator=a_name)

    def resolve(self, setup: Setup) -> ModulesSite:
        """Return the modules of the network.

        Raises:
            NeedsError: there is no network.
            SettingsError: no module has such a path; or the network runs inside one graph.
        """
        network = setup.network_for(self.pattern)
        refuse_frozen_graphs(network)
        chosen = _matching(network, self.pattern)
        if not chosen:
            paths = list(dict.fromkeys(_any_index(path) for path, _ in network.named_modules() if path))
            raise SettingsError(
                f"site {self.pattern!r}: no module of {type(network).__name__} has such a path; it has "
                f"{', '.join(paths[:20])}"
            )
        known = {} if setup.adapter is None else layers_of(network, setup.adapter)
        kinds = {path: known[path][1] for path in chosen if path in known}
        pattern = self.pattern
        return ModulesSite(
            pattern, network, chosen, outside_signals(setup), kinds=kinds, find=lambda: _matching(network, pattern)
        )
