"""Offloaded weights: at hand where a signal is computed with a block's own parameters, outside of its call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cachepolicies.base.foreign import REGISTRY

_GROUP = "group_offloading"
"""Name of the hook in diffusers."""


@contextmanager
def weights_at_hand(module: nn.Module) -> Iterator[None]:
    """Have a module's weights where they are in its call, and leave them as they were.

    Offloading brings the weights of a block in when the block is called; those of the modules inside of it may come in
    with the calls of these.

    Args:
        module: under accelerate's sequential offloading, diffusers' group offloading, or neither.
    """
    attributes = vars(module)
    if "_hf_hook" in attributes:
        from accelerate.utils import align_module_device

        with align_module_device(module):
            yield
        return
    registry: Any = attributes.get(REGISTRY)
    hook = None if registry is None else registry.get_hook(_GROUP)
    if hook is None:
        yield
        return
    group = hook.group
    brought = not _is_in(group)
    if brought:
        group.onload_()
    if group.stream is not None:
        group.stream.synchronize()
    try:
        yield
    finally:
        if brought:
            group.offload_()


def _is_in(group: Any) -> bool:
    """Whether the group was brought in already, ahead of its call."""
    if group.onload_device == group.offload_device:  # on disk meanwhile: the device does not tell
        return False
    held = [*(p for member in group.modules for p in member.parameters()), *group.parameters]
    return bool(held) and held[0].device == group.onload_device
