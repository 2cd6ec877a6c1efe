"""Ovis-Image: double blocks on two streams, then single blocks on both."""

from __future__ import annotations

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import patches_by_ids
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf

_BOTH = ("encoder_hidden_states", "hidden_states")


def ovis_image() -> Adapter:
    """Return the adapter of ``OvisImageTransformer2DModel``."""
    return Adapter(
        "OvisImageTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals={"modulated_input": adaptive_norm, "timestep_embedding": OutputOf("timestep_embedder")},
        unpack=patches_by_ids,
        clock="unit",
        rows=("hidden_states", "encoder_hidden_states", "timestep"),
        source="as for FLUX.1",
        note="the image stream over double and single blocks; the text is not used behind them",
    )
