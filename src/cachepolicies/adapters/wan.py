"""Wan 2.1 and 2.2: one video stream; VACE adds hints to it between the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from torch import Tensor

from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf

_ROWS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image")


def wan() -> Adapter:
    """Return the adapter of ``WanTransformer3DModel``."""
    return Adapter(
        "WanTransformer3DModel",
        stack=(Blocks("blocks"),),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("condition_embedder.time_embedder"),
            "timestep_projection": OutputOf("condition_embedder.time_proj"),
        },
        rows=_ROWS,
        source="TeaCache4Wan2.1/teacache_generate.py, MagCache4Wan2.1/magcache_generate.py, SenCache Wan2.1",
    )


def wan_vace() -> Adapter:
    """Return the adapter of ``WanVACETransformer3DModel``.

    The hint blocks run at every step; a hint that is added behind the last block is not part of the residual.
    """
    return evolve(
        wan(),
        model="WanVACETransformer3DModel",
        rows=(*_ROWS, "control_hidden_states"),
        source="as for Wan",
        note="the hint blocks run at every step",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens, normalised, scaled and shifted as the first block's attention gets them."""
    hidden, temb = arguments["hidden_states"], arguments["temb"].float()
    table = block.scale_shift_table
    if temb.ndim == 4:  # one noise level a token
        shift, scale = (table.unsqueeze(0) + temb).unbind(dim=2)[:2]
    else:
        shift, scale = (table + temb).chunk(table.shape[1], dim=1)[:2]
    normalised = block.norm1(hidden.float())
    modulated: Tensor = (normalised * (1 + scale) + shift).type_as(hidden)
    return modulated
