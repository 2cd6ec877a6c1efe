"""Qwen-Image: an image and a text stream; 2.1: one stream of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._latents import grid_by_shapes, last_grid_by_shapes, patches_by_shapes
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf


def qwen_image() -> Adapter:
    """Return the adapter of ``QwenImageTransformer2DModel``."""
    return Adapter(
        "QwenImageTransformer2DModel",
        stack=(
            Blocks(
                "transformer_blocks",
                ("encoder_hidden_states", "hidden_states"),
                kinds={SPATIAL: "attn", MLP: ("img_mlp", "txt_mlp")},
            ),
        ),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("time_text_embed.timestep_embedder"),
        },
        unpack=patches_by_shapes,
        tokens=grid_by_shapes,
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


def qwen_image21() -> Adapter:
    """Return the adapter of ``QwenImage21Transformer2DModel``, whose blocks take text and images joined.

    The keys and values of text and given images are the same at every step: the call that keeps them runs as it is, and
    those that only read them are cached.
    """
    return Adapter(
        "QwenImage21Transformer2DModel",
        stack=(Blocks("transformer_blocks", kinds={SPATIAL: "attn", MLP: "img_mlp"}),),
        signals={"modulated_input": _joint_input, "timestep_projection": _projection},
        unpack=last_grid_by_shapes,
        clock="unit",
        rows={
            "hidden_states": "first",
            "encoder_hidden_states": "first",
            "encoder_hidden_states_mask": "first",
            "timestep": "first",
            "img_mask": "first",
            "img_shapes": "list",
        },
        rows_independent=False,
        reads_memory=_only_reads,
        source="as for FLUX.1",
        note="one decision a batch: its samples share the layout of the first, and the memory of the text",
    )


def _only_reads(call: Mapping[str, Any]) -> bool:
    return call.get("kv_cache_mode") == "cached"


def _projection(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the modulation that all blocks share; a last row, for the tokens at t = 0, is left out."""
    modulation: Tensor = arguments["modulation"]
    return modulation[: arguments["hidden_states"].shape[0]]


def _joint_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return all tokens, normalised and scaled as the first block's attention gets them."""
    modulation = arguments["modulation"].chunk(2, dim=-1)[0]
    normalised = block.img_norm1(arguments["hidden_states"])
    modulated: Tensor = block._modulate(normalised, modulation, arguments.get("target_token_mask"))[0]
    return modulated
