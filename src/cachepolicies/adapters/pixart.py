"""PixArt-alpha and -sigma, Sana, Sana-Video: one stream, modulated by a table that the timestep shifts."""

from __future__ import annotations

from attrs import evolve

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.adapters._signals import shared_table
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def pixart() -> Adapter:
    """Return the adapter of ``PixArtTransformer2DModel``."""
    return Adapter(
        "PixArtTransformer2DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        signals={"modulated_input": shared_table, "timestep_embedding": OutputOf("adaln_single", pick=1)},
        tokens=grid_of_patches,
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "added_cond_kwargs",
            "attention_mask",
            "encoder_attention_mask",
        ),
        source="as for FLUX.1",
    )


def sana() -> Adapter:
    """Return the adapter of ``SanaTransformer2DModel``."""
    return Adapter(
        "SanaTransformer2DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        signals={"modulated_input": shared_table, "timestep_embedding": OutputOf("time_embed", pick=1)},
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "guidance",
            "encoder_attention_mask",
            "attention_mask",
            "controlnet_block_samples",
        ),
        source="as for FLUX.1",
    )


def sana_video() -> Adapter:
    """Return the adapter of ``SanaVideoTransformer3DModel``."""
    return evolve(
        sana(),
        model="SanaVideoTransformer3DModel",
        signals={"modulated_input": shared_table, "timestep_embedding": OutputOf("time_embed", pick=1)},
        source="as for FLUX.1",
        note="calls with a noise level a frame are evaluated in full",
    )
