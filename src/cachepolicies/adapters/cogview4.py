"""CogView4: an image and a text stream."""

from __future__ import annotations

from cachepolicies.adapters._signals import joint_norm
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf

_BOTH = ("hidden_states", "encoder_hidden_states")


def cogview4() -> Adapter:
    """Return the adapter of ``CogView4Transformer2DModel``."""
    return Adapter(
        "CogView4Transformer2DModel",
        stack=(
            Blocks(
                "transformer_blocks",
                ("hidden_states", "encoder_hidden_states"),
                kinds={SPATIAL: "attn1", MLP: ("ff", "ff#2")},
            ),
        ),
        signals={
            "modulated_input": joint_norm,
            "timestep_embedding": OutputOf("time_condition_embed.timestep_embedder"),
        },
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "original_size",
            "target_size",
            "crop_coords",
            "attention_mask",
        ),
        source="as for FLUX.1",
        note="the image stream; the text is not used behind the blocks",
    )
