"""Stable Diffusion 3 and 3.5: an image and a text stream."""

from __future__ import annotations

from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf

_KINDS = {SPATIAL: ("attn", "attn2"), MLP: ("ff", "ff_context")}
"""Some blocks of 3.5 medium have a second attention, of the image tokens alone."""


def sd3() -> Adapter:
    """Return the adapter of ``SD3Transformer2DModel``."""
    return Adapter(
        "SD3Transformer2DModel",
        stack=(Blocks("transformer_blocks", ("encoder_hidden_states", "hidden_states"), kinds=_KINDS),),
        signals={
            "modulated_input": adaptive_norm,
            "timestep_embedding": OutputOf("time_text_embed.timestep_embedder"),
        },
        tokens=grid_of_patches,
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "block_controlnet_hidden_states",
        ),
        source="as for FLUX.1",
        note="a pass that skips layers for guidance must not skip the first or the last",
    )
