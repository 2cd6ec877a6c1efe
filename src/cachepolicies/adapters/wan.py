"""Wan 2.1 and 2.2 and what is built like them: one video stream, to which VACE and Animate add between the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from torch import Tensor

from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf

_ROWS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image")


def wan() -> Adapter:
    """Return the adapter of ``WanTransformer3DModel``."""
    return Adapter(
        "WanTransformer3DModel",
        stack=(Blocks("blocks", kinds={SPATIAL: "attn1", CROSS: "attn2", MLP: "ffn"}),),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("condition_embedder.time_embedder"),
            "timestep_projection": OutputOf("condition_embedder.time_proj"),
        },
        tokens=grid_of_patches,
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


def wan_animate() -> Adapter:
    """Return the adapter of ``WanAnimateTransformer3DModel``.

    What its face adapter adds between the blocks is part of the residual; it runs at every step all the same.
    """
    return evolve(
        wan(),
        model="WanAnimateTransformer3DModel",
        rows=(*_ROWS, "pose_hidden_states", "face_pixel_values"),
        source="as for Wan",
        note="the encoders of pose and face and the face adapters run at every step",
    )


def chronoedit() -> Adapter:
    """Return the adapter of ``ChronoEditTransformer3DModel``."""
    return evolve(wan(), model="ChronoEditTransformer3DModel", source="as for Wan")


def skyreels_v2() -> Adapter:
    """Return the adapter of ``SkyReelsV2Transformer3DModel``; a call with a noise level a frame runs as it is."""
    return evolve(
        wan(),
        model="SkyReelsV2Transformer3DModel",
        rows=(*_ROWS, "fps"),
        source="as for Wan",
        note="calls with several noise levels (diffusion forcing) are evaluated in full",
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
