"""HunyuanVideo, FramePack, HunyuanImage: double blocks on two streams, then single blocks on both (1.5 has none)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from torch import Tensor

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf

_BOTH = ("hidden_states", "encoder_hidden_states")
_ROWS = (
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "guidance",
)


def hunyuan_video() -> Adapter:
    """Return the adapter of ``HunyuanVideoTransformer3DModel``."""
    return Adapter(
        "HunyuanVideoTransformer3DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals={
            "modulated_input": _modulated_input,
            "timestep_embedding": OutputOf("time_text_embed.timestep_embedder"),
        },
        tokens=grid_of_patches,
        rows=_ROWS,
        source="TeaCache4HunyuanVideo/teacache_sample_video.py, MagCache4HunyuanVideo/magcache_sample_video.py",
        note="the video stream over double and single blocks; the text is not used behind them",
    )


def framepack() -> Adapter:
    """Return the adapter of ``HunyuanVideoFramepackTransformer3DModel``.

    The frames that came before are tokens of the video stream, in front of those that are drawn.
    """
    return evolve(
        hunyuan_video(),
        model="HunyuanVideoFramepackTransformer3DModel",
        tokens=None,
        rows=(
            *_ROWS,
            "image_embeds",
            "latents_clean",
            "latents_history_2x",
            "latents_history_4x",
        ),
        source="as for HunyuanVideo",
        note="the video stream with its history, over double and single blocks",
    )


def hunyuan_image() -> Adapter:
    """Return the adapter of ``HunyuanImageTransformer2DModel``."""
    return Adapter(
        "HunyuanImageTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals={
            "modulated_input": adaptive_norm,
            "timestep_embedding": OutputOf("time_guidance_embed.timestep_embedder"),
        },
        rows=(
            "hidden_states",
            "timestep",
            "timestep_r",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "encoder_hidden_states_2",
            "encoder_attention_mask_2",
            "guidance",
        ),
        source="as for HunyuanVideo",
        note="the image stream over double and single blocks; the text is not used behind them",
    )


def hunyuan_video15() -> Adapter:
    """Return the adapter of ``HunyuanVideo15Transformer3DModel``.

    The model takes a batch for text to video if *all* its image embeddings are zero, so a batch is not split.
    """
    return Adapter(
        "HunyuanVideo15Transformer3DModel",
        stack=(Blocks("transformer_blocks", _BOTH, kinds=JOINT),),
        signals={"modulated_input": adaptive_norm, "timestep_embedding": OutputOf("time_embed")},
        rows_independent=False,
        rows=(
            "hidden_states",
            "timestep",
            "timestep_r",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "encoder_hidden_states_2",
            "encoder_attention_mask_2",
            "image_embeds",
        ),
        source="as for HunyuanVideo",
        note="one decision a batch: the model treats a batch of zero image embeddings in another way",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens as the first block's attention gets them; a first frame that is given has its own t."""
    given, tokens = arguments.get("token_replace_emb"), arguments.get("first_frame_num_tokens")
    if given is None or tokens is None:
        return adaptive_norm(block, arguments)
    modulated: Tensor = block.norm1(arguments["hidden_states"], arguments["temb"], given, tokens)[0]
    return modulated
