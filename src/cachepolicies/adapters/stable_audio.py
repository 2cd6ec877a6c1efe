"""Stable Audio: one stream of audio tokens, behind a token that holds t in 1, behind learned tokens in 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf


def stable_audio() -> Adapter:
    """Return the adapter of ``StableAudioDiTModel``."""
    return Adapter(
        "StableAudioDiTModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        signals={"timestep_embedding": OutputOf("timestep_proj")},
        rows=(
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "global_hidden_states",
            "attention_mask",
            "encoder_attention_mask",
        ),
        source="as for FLUX.1",
        note="its blocks are not modulated, so there is no modulated input; the head does not see t",
    )


def stable_audio3() -> Adapter:
    """Return the adapter of ``StableAudio3DiTModel``."""
    return Adapter(
        "StableAudio3DiTModel",
        stack=(Blocks("transformer_blocks", kinds={SPATIAL: "self_attn", CROSS: "cross_attn", MLP: "ff"}),),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("to_timestep_embed")},
        rows=(
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "global_hidden_states",
            "encoder_attention_mask",
            "local_add_cond",
        ),
        source="as for FLUX.1",
        note="the head does not see t; the learned tokens in front of the audio's are part of the residual",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the tokens, normalised, scaled and shifted as the first block's attention gets them."""
    modulation = block.to_scale_shift_gate + arguments["global_modulation"]
    scale, shift = modulation.chunk(6, dim=-1)[:2]
    normalised = block.pre_norm(arguments["hidden_states"])
    modulated: Tensor = normalised * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    return modulated
