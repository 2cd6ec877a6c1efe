"""Cosmos: one video stream; every block adds the positional embedding again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def cosmos() -> Adapter:
    """Return the adapter of ``CosmosTransformer3DModel``."""
    return Adapter(
        "CosmosTransformer3DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("time_embed", pick=1)},
        velocity=None,
        rows=("hidden_states", "timestep", "encoder_hidden_states", "attention_mask", "condition_mask"),
        source="TeaCache4Cosmos/teacache_sample_video_t2v.py",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens, normalised and modulated, without the positional embedding (TeaCache4Cosmos)."""
    names = ("hidden_states", "embedded_timestep", "temb")
    modulated: Tensor = block.norm1(*(arguments[name] for name in names))[0]
    return modulated
