"""Kandinsky 5: blocks on the text, then blocks on the video, which look at the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._latents import channels_last
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf

_KINDS = {SPATIAL: "self_attention", CROSS: "cross_attention", MLP: "feed_forward"}


def kandinsky5() -> Adapter:
    """Return the adapter of ``Kandinsky5Transformer3DModel``."""
    return Adapter(
        "Kandinsky5Transformer3DModel",
        stack=(Blocks("visual_transformer_blocks", "visual_embed", kinds=_KINDS),),
        streams="visual_embed",
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("time_embeddings")},
        unpack=channels_last,
        channels=-1,
        rows=("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections"),
        source="as for FLUX.1",
        note="the blocks on the text run at every step",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens, normalised, scaled and shifted as the first block's attention gets them."""
    hidden = arguments["visual_embed"]
    shift, scale = block.visual_modulation(arguments["time_embed"]).unsqueeze(1).chunk(9, dim=-1)[:2]
    normalised = block.self_attention_norm(hidden.float())
    modulated: Tensor = (normalised * (scale.float() + 1.0) + shift.float()).type_as(hidden)
    return modulated
