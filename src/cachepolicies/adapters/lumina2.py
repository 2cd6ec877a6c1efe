"""Lumina-Image 2.0: refiners, then one joint stream of text and image; its t rises from 0, noise, to 1, data."""

from __future__ import annotations

from cachepolicies.adapters._signals import rms_norm_zero
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf


def lumina2() -> Adapter:
    """Return the adapter of ``Lumina2Transformer2DModel``."""
    return Adapter(
        "Lumina2Transformer2DModel",
        stack=(Blocks("layers", kinds={SPATIAL: "attn", MLP: "feed_forward"}),),
        signals={
            "modulated_input": rms_norm_zero,
            "timestep_embedding": OutputOf("time_caption_embed.timestep_embedder"),
        },
        clock="reversed-unit",
        velocity="data",
        rows_independent=False,
        rows=("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"),
        source="TeaCache4Lumina2/teacache_lumina2.py",
        note="one decision a batch: the length of the joint stream is that of the batch's longest caption",
    )
