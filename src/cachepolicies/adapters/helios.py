"""Helios: one video stream, the frames that came before in front of those that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf


def helios() -> Adapter:
    """Return the adapter of ``HeliosTransformer3DModel``."""
    return Adapter(
        "HeliosTransformer3DModel",
        stack=(Blocks("blocks", kinds={SPATIAL: "attn1", CROSS: "attn2", MLP: "ffn"}),),
        signals={"modulated_input": _modulated_input, "timestep_projection": OutputOf("condition_embedder", pick=1)},
        rows=(
            "hidden_states",
            "timestep",
            "encoder_hidden_states",
            "indices_hidden_states",
            "indices_latents_history_short",
            "indices_latents_history_mid",
            "indices_latents_history_long",
            "latents_history_short",
            "latents_history_mid",
            "latents_history_long",
        ),
        source="as for Wan",
        note="the tokens of the history are part of the residual",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the tokens, normalised, scaled and shifted as the first block's attention gets them.

    Those of the history have a noise level of their own, zero; ``temb`` is ``(B, tokens, 6, inner)``.
    """
    hidden, temb = arguments["hidden_states"], arguments["temb"].float()
    shift, scale = (block.scale_shift_table.unsqueeze(0) + temb).unbind(dim=2)[:2]
    modulated: Tensor = (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    return modulated
