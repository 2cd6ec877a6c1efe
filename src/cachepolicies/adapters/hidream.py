"""HiDream-I1: double blocks on two streams, then single blocks on image and text joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._latents import unpatched
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks, OutputOf

_KINDS = {SPATIAL: "block.attn1", MLP: ("block.ff_i", "block.ff_t")}


def hidream() -> Adapter:
    """Return the adapter of ``HiDreamImageTransformer2DModel``."""
    return Adapter(
        "HiDreamImageTransformer2DModel",
        stack=(
            Blocks("double_stream_blocks", ("hidden_states", "encoder_hidden_states"), kinds=_KINDS),
            Blocks("single_stream_blocks", part="head", kinds=_KINDS),
        ),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("t_embedder")},
        unpack=unpatched,
        velocity="data",
        rows={
            "hidden_states": "first",
            "timesteps": "first",
            "encoder_hidden_states_t5": "first",
            "encoder_hidden_states_llama3": "second",
            "pooled_embeds": "first",
            "img_ids": "first",
            "img_sizes": "first",
            "hidden_states_masks": "first",
        },
        source="TeaCache4HiDream-I1/teacache_hidream_i1.py",
        note="the image tokens in front of the text's",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens, normalised, scaled and shifted as the first block's attention gets them."""
    inner = block.block
    shift, scale = inner.adaLN_modulation(arguments["temb"])[:, None].chunk(12, dim=-1)[:2]
    normalised = inner.norm1_i(arguments["hidden_states"])
    modulated: Tensor = normalised * (1 + scale) + shift
    return modulated
