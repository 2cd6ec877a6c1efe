"""Hunyuan-DiT: one image stream through blocks with long skip connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def hunyuan_dit() -> Adapter:
    """Return the adapter of ``HunyuanDiT2DModel``."""
    return Adapter(
        "HunyuanDiT2DModel",
        stack=(Blocks("blocks", kinds=SELF_AND_CROSS),),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("time_extra_emb.timestep_embedder"),
        },
        rows=(
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "text_embedding_mask",
            "encoder_hidden_states_t5",
            "text_embedding_mask_t5",
            "image_meta_size",
            "style",
            "controlnet_block_samples",
        ),
        source="as for FLUX.1",
        note="the skip connections between the blocks are inside the residual",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens, normalised and shifted as the first block's attention gets them."""
    modulated: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"])
    return modulated
