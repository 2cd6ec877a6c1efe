"""Chroma: double blocks on two streams, then single blocks on text and image joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import grid_by_ids, patches_by_ids
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def chroma() -> Adapter:
    """Return the adapter of ``ChromaTransformer2DModel``."""
    return Adapter(
        "ChromaTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", ("encoder_hidden_states", "hidden_states"), kinds=JOINT),
            Blocks("single_transformer_blocks", part="tail", kinds=PARALLEL),
        ),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("distilled_guidance_layer")},
        unpack=patches_by_ids,
        tokens=grid_by_ids,
        clock="unit",
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "attention_mask",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ),
        source="as for FLUX.1",
        note="the image tokens behind the text's; the timestep embedding is the modulation of all blocks",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens as the first block's attention gets them; the first half of its modulation is theirs."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], emb=arguments["temb"][:, :6])[0]
    return modulated
