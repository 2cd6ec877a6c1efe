"""AuraFlow: joint blocks on two streams, then single blocks on text and image joined."""

from __future__ import annotations

from cachepolicies.adapters._kinds import JOINT
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def auraflow() -> Adapter:
    """Return the adapter of ``AuraFlowTransformer2DModel``."""
    return Adapter(
        "AuraFlowTransformer2DModel",
        stack=(
            Blocks("joint_transformer_blocks", ("encoder_hidden_states", "hidden_states"), kinds=JOINT),
            Blocks("single_transformer_blocks", part="tail", kinds=JOINT),
        ),
        signals={"modulated_input": adaptive_norm, "timestep_embedding": OutputOf("time_step_proj")},
        clock="unit",
        rows=("hidden_states", "encoder_hidden_states", "timestep"),
        source="as for FLUX.1",
        note="the image tokens behind the text's",
    )
