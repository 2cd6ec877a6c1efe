"""DiT: one image stream; every block embeds the timestep and the class label itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF
from cachepolicies.adapters._latents import grid_of_patches
from cachepolicies.contracts.adapter import Adapter, Blocks


def dit() -> Adapter:
    """Return the adapter of ``DiTTransformer2DModel``."""
    return Adapter(
        "DiTTransformer2DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF),),
        signals={"modulated_input": _modulated_input, "timestep_embedding": _timestep_embedding},
        tokens=grid_of_patches,
        rows=("hidden_states", "timestep", "class_labels"),
        source="as for FLUX.1",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the image tokens, normalised, scaled and shifted by the first block."""
    hidden = arguments["hidden_states"]
    norm, t, labels = block.norm1, arguments["timestep"], arguments["class_labels"]
    modulated: Tensor = norm(hidden, t, labels, hidden_dtype=hidden.dtype)[0]
    return modulated


def _timestep_embedding(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the first block's embedding of the timestep, without the class label's."""
    embed = block.norm1.emb
    embedding: Tensor = embed.timestep_embedder(embed.time_proj(arguments["timestep"]).to(arguments["hidden_states"]))
    return embedding
