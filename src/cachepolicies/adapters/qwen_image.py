"""Qwen-Image: an image and a text stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._latents import patches_by_shapes
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def qwen_image() -> Adapter:
    """Return the adapter of ``QwenImageTransformer2DModel``."""
    return Adapter(
        "QwenImageTransformer2DModel",
        stack=(Blocks("transformer_blocks", ("encoder_hidden_states", "hidden_states")),),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("time_text_embed.timestep_embedder"),
        },
        unpack=patches_by_shapes,
        clock="unit",
        rows={
            "hidden_states": "first",
            "encoder_hidden_states": "first",
            "encoder_hidden_states_mask": "first",
            "timestep": "first",
            "guidance": "first",
            "img_shapes": "list",
            "controlnet_block_samples": "first",
            "additional_t_cond": "first",
        },
        source="MagCache4QwenImage/magcache_generate.py",
        note="what a ControlNet adds behind the last block is not part of the residual",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens, normalised, scaled and shifted as the first block's attention gets them."""
    modulation = block.img_mod(arguments["temb"]).chunk(2, dim=-1)[0]
    normalised = block.img_norm1(arguments["hidden_states"])
    modulated: Tensor = block._modulate(normalised, modulation, arguments.get("modulate_index"))[0]
    return modulated
