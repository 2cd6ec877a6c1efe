"""EasyAnimate: a video and a text stream."""

from __future__ import annotations

from cachepolicies.adapters._signals import joint_norm
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf


def easyanimate() -> Adapter:
    """Return the adapter of ``EasyAnimateTransformer3DModel``."""
    return Adapter(
        "EasyAnimateTransformer3DModel",
        stack=(
            Blocks(
                "transformer_blocks",
                ("hidden_states", "encoder_hidden_states"),
                kinds={SPATIAL: "attn1", MLP: ("ff", "ff#2", "txt_ff")},
            ),
        ),
        signals={"modulated_input": joint_norm, "timestep_embedding": OutputOf("time_embedding")},
        rows=(
            "hidden_states",
            "timestep",
            "timestep_cond",
            "encoder_hidden_states",
            "encoder_hidden_states_t5",
            "inpaint_latents",
            "control_latents",
        ),
        source="as for FLUX.1",
        note="the video stream; the text is not used behind the blocks",
    )
