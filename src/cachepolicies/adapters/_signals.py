"""Modulated inputs that several families of models share: the tokens as the first block's attention gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def adaptive_norm(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the first output of ``norm1(hidden_states, emb=temb)``: an AdaLN-Zero norm (TeaCache4FLUX)."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"])[0]
    return modulated


def joint_norm(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the first output of ``norm1(hidden_states, encoder_hidden_states, temb)``: one norm of two streams."""
    names = ("hidden_states", "encoder_hidden_states", "temb")
    modulated: Tensor = block.norm1(*(arguments[name] for name in names))[0]
    return modulated


def rms_norm_zero(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the first output of ``norm1(hidden_states, temb)``, which scales only (TeaCache4Mochi, -4Lumina2)."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"])[0]
    return modulated


def shared_table(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return ``norm1(x)``, scaled and shifted by the block's own table plus the projected timestep: AdaLN-single.

    The block gets the projection ``(B, 6 * inner)`` as ``timestep``.
    """
    hidden, timestep = arguments["hidden_states"], arguments["timestep"]
    table = block.scale_shift_table
    modulation = table[None] + timestep.reshape(hidden.shape[0], table.shape[0], -1)
    shift, scale = modulation.chunk(table.shape[0], dim=1)[:2]
    normalised = block.norm1(hidden)
    modulated: Tensor = normalised * (1 + scale) + shift
    return modulated
