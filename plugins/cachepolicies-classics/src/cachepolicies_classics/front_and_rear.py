"""The site of Delta-DiT: the first blocks of the stack, and the last."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from attrs import evolve, field, frozen
from attrs.validators import ge, instance_of, optional

from cachepolicies import NeedsError, SettingsError, Setup, Site
from cachepolicies.adapters import adapter_of, blocks_of
from cachepolicies.sites import RangesSite, outside_signals, range_of

FRONT, REAR, BOTH = "front", "rear", "front and rear"
"""Kinds of the places."""


@frozen
class FrontAndRear(Site):
    """Cuts around the first blocks of the stack and around the last, as many of each; both may have some in common.

    What each part adds to the streams is remembered. Blocks that belong to both are a place of their own.

    Attributes:
        blocks: how many of each; ``None`` for half of the stack, rounded down.
    """

    name: ClassVar[str] = "front-and-rear"

    blocks: int | None = field(default=None, validator=optional([instance_of(int), ge(1)]))

    def resolve(self, setup: Setup) -> RangesSite:
        """Return the parts on the network.

        Raises:
            NeedsError: there is no network, or no adapter for its class.
            SettingsError: it has fewer blocks; or what flows through the stack changes its form within a part.
        """
        network = setup.network_for(self.name)
        adapter = adapter_of(network) if setup.adapter is None else setup.adapter
        depth = len(blocks_of(network, adapter))
        count = depth // 2 if self.blocks is None else self.blocks
        if not 0 < count < depth:
            raise SettingsError(
                f"front-and-rear: blocks is {count}, and a {type(network).__name__} has {depth}: at least one, and one "
                "less than all"
            )
        cuts = sorted({0, count, depth - count, depth})
        found = []
        for start, stop in pairwise(cuts):
            kinds = [kind for kind, inside in ((FRONT, stop <= count), (REAR, start >= depth - count)) if inside]
            if kinds:
                part = range_of(network, adapter, start, stop)
                found.append(evolve(part, kind=BOTH if len(kinds) > 1 else kinds[0]))
        return RangesSite(self.name, network, found, outside_signals(setup))


def kinds_of(setup: Setup, policy: str) -> dict[str, str]:
    """Return which place is front and which is rear.

    Raises:
        NeedsError: the site of the set-up is another one.
    """
    kinds = {} if setup.site is None else dict(setup.site.kinds)
    if setup.site is not None and not {FRONT, REAR} <= {*kinds.values()}:
        raise NeedsError(
            f"policy {policy!r} decides for the front and the rear of the block stack, and site {setup.site.name!r} "
            "does not have them; leave the site out, or use site='front-and-rear:blocks=...'"
        )
    return kinds
