"""Allegro: one video stream, modulated by a table that the timestep shifts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.adapters._signals import shared_table
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf


def allegro() -> Adapter:
    """Return the adapter of ``AllegroTransformer3DModel``."""
    return Adapter(
        "AllegroTransformer3DModel",
        stack=(Blocks("transformer_blocks", kinds=SELF_AND_CROSS),),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("adaln_single", pick=1)},
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "attention_mask",
            "encoder_attention_mask",
        ),
        source="as for FLUX.1",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the video tokens as the first block's attention gets them; it takes the timestep as ``temb``."""
    return shared_table(block, {**arguments, "timestep": arguments["temb"]})
