"""FLUX.1 and FLUX.2: double blocks on two streams, then single blocks on both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import grid_by_ids, patches_by_ids
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import SPATIAL, Adapter, Blocks, OutputOf

_BOTH = ("encoder_hidden_states", "hidden_states")


def flux() -> Adapter:
    """Return the adapter of ``FluxTransformer2DModel``."""
    return Adapter(
        "FluxTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals={
            "modulated_input": adaptive_norm,
            "timestep_embedding": OutputOf("time_text_embed.timestep_embedder"),
        },
        unpack=patches_by_ids,
        tokens=grid_by_ids,
        clock="unit",
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "guidance",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ),
        source="TeaCache4FLUX/teacache_flux.py, MagCache4FLUX/magcache_flux.py",
        note="the image stream over double and single blocks; the text is not used behind them",
    )


def flux2() -> Adapter:
    """Return the adapter of ``Flux2Transformer2DModel``, whose single blocks take both streams joined."""
    return Adapter(
        "Flux2Transformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", part="tail", kinds={SPATIAL: "attn"}),
        ),
        signals={
            "modulated_input": _shared_modulation,
            "timestep_embedding": OutputOf("time_guidance_embed.timestep_embedder"),
        },
        unpack=patches_by_ids,
        tokens=grid_by_ids,
        clock="unit",
        rows=("hidden_states", "encoder_hidden_states", "timestep", "img_ids", "txt_ids", "guidance"),
        source="as for FLUX.1",
        note="the image tokens behind the text's",
    )


def _shared_modulation(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens, normalised, scaled and shifted by the modulation that all double blocks share."""
    modulation = arguments["temb_mod_img"]
    modulation = modulation[:, None] if modulation.ndim == 2 else modulation
    shift, scale = modulation.chunk(6, dim=-1)[:2]
    normalised = block.norm1(arguments["hidden_states"])
    modulated: Tensor = (1 + scale) * normalised + shift
    return modulated
