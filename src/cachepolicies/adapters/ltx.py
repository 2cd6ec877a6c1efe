"""LTX-Video, one video stream, and LTX-2, a video and an audio stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.adapters._latents import grid_by_sizes, tokens_of_video
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf

_BOTH_STREAMS = {
    SPATIAL: ("attn1", "audio_attn1"),
    CROSS: ("attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"),
    MLP: ("ff", "audio_ff"),
}


def ltx() -> Adapter:
    """Return the adapter of ``LTXVideoTransformer3DModel``."""
    return Adapter(
        "LTXVideoTransformer3DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        ends_before="proj_out",
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("time_embed.emb")},
        unpack=tokens_of_video,
        tokens=grid_by_sizes,
        rows=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask", "video_coords"),
        source="TeaCache4LTX-Video/teacache_ltx.py, SenCache LTX-Video/sencache.py",
        note="the final norm and its modulation are part of what is replaced, as in the authors' code",
    )


def ltx2() -> Adapter:
    """Return the adapter of ``LTX2VideoTransformer3DModel``, which predicts video and audio."""
    return Adapter(
        "LTX2VideoTransformer3DModel",
        stack=(Blocks("transformer_blocks", ("hidden_states", "audio_hidden_states"), kinds=_BOTH_STREAMS),),
        streams=("hidden_states", "audio_hidden_states"),
        signals={"modulated_input": _video_modulation, "timestep_embedding": OutputOf("time_embed.emb")},
        unpack=tokens_of_video,
        rows=(
            "hidden_states",
            "audio_hidden_states",
            "encoder_hidden_states",
            "audio_encoder_hidden_states",
            "timestep",
            "audio_timestep",
            "sigma",
            "audio_sigma",
            "encoder_attention_mask",
            "audio_encoder_attention_mask",
            "video_coords",
            "audio_coords",
        ),
        source="as for LTX-Video, with the head evaluated",
        note="policies that look at the latent see the video's",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens, normalised, scaled and shifted as the first block's attention gets them."""
    hidden, temb = arguments["hidden_states"], arguments["temb"]
    table = block.scale_shift_table
    modulation = table[None, None] + temb.reshape(hidden.shape[0], temb.shape[1], table.shape[0], -1)
    shift, scale = modulation.unbind(dim=2)[:2]
    normalised = block.norm1(hidden)
    modulated: Tensor = normalised * (1 + scale) + shift
    return modulated


def _video_modulation(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    hidden = arguments["hidden_states"]
    shift, scale = block.get_mod_params(block.scale_shift_table, arguments["temb"], hidden.shape[0])[:2]
    normalised = block.norm1(hidden)
    modulated: Tensor = normalised * (1 + scale) + shift
    return modulated
