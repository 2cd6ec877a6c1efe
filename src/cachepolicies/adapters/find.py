"""Which adapter serves a model: the one registered for its class, or a generic one where the model is plain."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

from torch import nn

from cachepolicies.base.errors import NeedsError, PolicyError, SettingsError
from cachepolicies.base.models import network_inside
from cachepolicies.base.sources import returns_tuple
from cachepolicies.contracts.adapter import Adapter, Blocks, submodule
from cachepolicies.registry import load as _plugins

_NOT_PLAIN = {"ErnieImageTransformer2DModel": "its tokens are the first dimension of its streams, the batch the second"}
"""Classes whose modules look plain and are not, and why."""

_STREAM_NAMES = ("hidden_states", "x", "hidden", "h")


def network_of(denoiser: Any) -> nn.Module | None:
    """Return the network that a denoiser calls, ``None`` where there is no telling.

    A module is its own network; compiled modules, partials and bound methods are looked through. A wrapper (a guided
    denoiser, say), itself a module or not, names the module it calls by an attribute ``network``.
    """
    return network_inside(denoiser)


def adapter_of(network: nn.Module) -> Adapter:
    """Return the adapter of a network's class or of its nearest base class that has one; else a generic one.

    The generic adapter serves a model whose blocks are one `torch.nn.ModuleList` directly below it, all of one class,
    with the hidden states as their first argument, returned alone.

    Raises:
        NeedsError: there is none, and the model is not plain; says how to write one.
        PolicyError: what is registered is no `Adapter`.
    """
    registered = registered_adapter(network)
    return _generic(network) if registered is None else registered


def registered_adapter(network: nn.Module) -> Adapter | None:
    """Return the adapter that is registered for a network's class or for its nearest base class, else ``None``.

    Raises:
        PolicyError: what is registered is no `Adapter`.
    """
    registry = _plugins.adapters()
    for kind in type(network).__mro__:
        if kind.__name__ in registry:
            found: object = registry.create(kind.__name__)
            if not isinstance(found, Adapter):
                raise PolicyError(f"the adapter registered for {kind.__name__!r} is {found!r}, no Adapter")
            return found
    return None


def _generic(network: nn.Module) -> Adapter:
    kind = type(network).__name__
    for each in type(network).__mro__:
        if each.__name__ in _NOT_PLAIN:
            raise _unknown(network, _NOT_PLAIN[each.__name__])
    lists = {name: child for name, child in network.named_children() if isinstance(child, nn.ModuleList) and len(child)}
    if len(lists) != 1:
        raise _unknown(network, f"it has {len(lists)} lists of modules ({', '.join(lists) or 'none'}), not one")
    ((path, blocks),) = lists.items()
    classes = {type(block).__name__ for block in blocks}
    if len(classes) != 1:
        raise _unknown(network, f"the modules in {path!r} are of different classes ({', '.join(sorted(classes))})")
    names = [p for p in inspect.signature(type(blocks[0]).forward).parameters if p != "self"]
    if not names or names[0] not in _STREAM_NAMES:
        first = f"{names[0]!r}" if names else "nothing"
        raise _unknown(network, f"the first argument of its blocks is {first}, not one of {', '.join(_STREAM_NAMES)}")
    if returns_tuple(type(blocks[0])):
        raise _unknown(network, f"its blocks, {type(blocks[0]).__name__}, return a tuple, not one stream")
    return Adapter(
        model=kind,
        stack=(Blocks(path, hands_on=names[0]),),
        streams=names[0],
        source="generic",
        note="found by its shape: one list of blocks of one class",
    )


def _unknown(network: nn.Module, why: str) -> NeedsError:
    kind = type(network).__name__
    known = ", ".join(_plugins.adapters().names())
    return NeedsError(
        f"site 'blocks' does not know where the block stack of {kind} is: there is no adapter for this class, and "
        f"{why}. Use site='output', name a submodule, site='path.of.module', or register an adapter, about 15 "
        f"lines: register({kind!r}, lambda: Adapter({kind!r}, stack=[Blocks('transformer_blocks')])) in the hook "
        f"cachepolicies_register_adapters (docs: Extend, Adapters). Known: {known}"
    )


def blocks_of(network: nn.Module, adapter: Adapter) -> dict[str, tuple[nn.Module, Blocks]]:
    """Return the blocks of a network's stack by path, in the order in which they run, with what the adapter says.

    Raises:
        SettingsError: the adapter names a module that the network does not have, or one without blocks.
    """
    lists: list[dict[str, tuple[nn.Module, Blocks]]] = []
    for blocks in adapter.stack:
        module = submodule(network, blocks.path, f"adapter of {adapter.model!r}")
        if isinstance(module, nn.ModuleList):
            lists.append({f"{blocks.path}.{i}": (block, blocks) for i, block in enumerate(module)})
        else:
            lists.append({blocks.path: (module, blocks)})
    if adapter.take_turns and len({len(each) for each in lists}) > 1:
        lengths = ", ".join(f"{blocks.path} has {len(each)}" for blocks, each in zip(adapter.stack, lists, strict=True))
        raise SettingsError(
            f"adapter of {adapter.model!r}: lists that take turns are equally long, and of this "
            f"{type(network).__name__} {lengths}"
        )
    in_order = itertools.chain(*zip(*(each.items() for each in lists), strict=True)) if adapter.take_turns else None
    found = dict(itertools.chain(*(each.items() for each in lists)) if in_order is None else in_order)
    if not found:
        paths = ", ".join(blocks.path for blocks in adapter.stack)
        raise SettingsError(f"adapter of {adapter.model!r}: {paths} of this {type(network).__name__} hold no block")
    return found


def check_adapter(adapter: object) -> Adapter:
    """Return the adapter, refusing anything else.

    Raises:
        SettingsError: it is none.
    """
    if not isinstance(adapter, Adapter):
        raise SettingsError(f"adapter is a {type(adapter).__name__}; give a cachepolicies.adapters.Adapter")
    return adapter
