"""Bria 3.2 and FIBO: double blocks on two streams, then single blocks on both."""

from __future__ import annotations

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import patches_by_ids, tokens_by_ids
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import Adapter, Blocks, BlockSignal, OutputOf

_BOTH = ("encoder_hidden_states", "hidden_states")
_SIGNALS: dict[str, BlockSignal | OutputOf] = {
    "modulated_input": adaptive_norm,
    "timestep_embedding": OutputOf("time_embed.timestep_embedder"),
}


def bria() -> Adapter:
    """Return the adapter of ``BriaTransformer2DModel``."""
    return Adapter(
        "BriaTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals=_SIGNALS,
        unpack=patches_by_ids,
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "pooled_projections",
            "timestep",
            "guidance",
            "controlnet_block_samples",
            "controlnet_single_block_samples",
        ),
        source="as for FLUX.1",
        note="the image stream over double and single blocks; the text is not used behind them",
    )


def bria_fibo() -> Adapter:
    """Return the adapter of ``BriaFiboTransformer2DModel``, whose single blocks take both streams joined."""
    return Adapter(
        "BriaFiboTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", part="tail", kinds=PARALLEL),
        ),
        signals=_SIGNALS,
        unpack=tokens_by_ids,
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "text_encoder_layers",
            "pooled_projections",
            "timestep",
            "guidance",
        ),
        source="as for FLUX.1",
        note="the image tokens behind the text's; a layer of the text encoder goes into every block",
    )
