"""Stable Audio: one stream of audio tokens behind a token that holds t. The method is not about pixels."""

from __future__ import annotations

from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def stable_audio() -> Adapter:
    """Return the adapter of ``StableAudioDiTModel``."""
    return Adapter(
        "StableAudioDiTModel",
        stack=(Blocks("transformer_blocks"),),
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
