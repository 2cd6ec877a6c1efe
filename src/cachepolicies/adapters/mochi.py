"""Mochi 1: a video and a text stream; its t rises from 0, noise, to 1000, data."""

from __future__ import annotations

from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.adapters._signals import rms_norm_zero
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf


def mochi() -> Adapter:
    """Return the adapter of ``MochiTransformer3DModel``."""
    return Adapter(
        "MochiTransformer3DModel",
        stack=(
            Blocks(
                "transformer_blocks",
                ("hidden_states", "encoder_hidden_states"),
                kinds={SPATIAL: "attn1", MLP: ("ff", "ff_context")},
            ),
        ),
        ends_before="proj_out",
        signals={"modulated_input": rms_norm_zero, "timestep_embedding": OutputOf("time_embed.timestep_embedder")},
        tokens=grid_of_patches,
        rows=("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask"),
        source="TeaCache4Mochi/teacache_mochi.py",
        note="the final norm is part of what is replaced, as in the authors' code",
    )
