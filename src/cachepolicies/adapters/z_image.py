"""Z-Image: refiners, then one joint stream; latents and captions come as lists, and t rises from 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.contracts.adapter import MLP, SPATIAL, Adapter, Blocks


def z_image() -> Adapter:
    """Return the adapter of ``ZImageTransformer2DModel``."""
    return Adapter(
        "ZImageTransformer2DModel",
        stack=(Blocks("layers", hands_on="x", kinds={SPATIAL: "attention", MLP: "feed_forward"}),),
        streams="x",
        signals={"modulated_input": _modulated_input, "timestep_embedding": _timestep_embedding},
        clock="reversed-unit",
        velocity="data",
        rows_independent=False,
        rows={"x": "list", "t": "first", "cap_feats": "list"},
        source="as for FLUX.1",
        note="one decision a batch: the length of the joint stream is that of the batch's longest caption",
    )


def _timestep_embedding(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the embedding of t that all blocks are modulated by."""
    embedding = arguments.get("adaln_input")
    if not isinstance(embedding, Tensor):
        raise InputError(
            "this call of Z-Image has one noise level a token (omni mode), which has no one embedding of t"
        )
    return embedding


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the joint tokens, normalised and scaled as the first block's attention gets them."""
    scale = block.adaLN_modulation(_timestep_embedding(block, arguments)).unsqueeze(1).chunk(4, dim=2)[0]
    normalised = block.attention_norm1(arguments["x"])
    modulated: Tensor = normalised * (1 + scale)
    return modulated
