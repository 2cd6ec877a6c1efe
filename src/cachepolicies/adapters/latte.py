"""Latte: blocks over the places of a frame and blocks over the frames of a place, in turn."""

from __future__ import annotations

from torch import Tensor

from cachepolicies.adapters._kinds import SELF_AND_CROSS
from cachepolicies.adapters._signals import shared_table
from cachepolicies.contracts.adapter import MLP, TEMPORAL, Adapter, Blocks, OutputOf


def latte() -> Adapter:
    """Return the adapter of ``LatteTransformer3DModel``.

    The stream enters as ``(B * frames, places, inner)`` and leaves the last block as ``(B * places, frames, inner)``;
    in front of the final norm it has its first shape again, so the stack ends there.
    """
    return Adapter(
        "LatteTransformer3DModel",
        stack=(
            Blocks("transformer_blocks", kinds=SELF_AND_CROSS),
            Blocks("temporal_transformer_blocks", kinds={TEMPORAL: "attn1", MLP: "ff"}),
        ),
        ends_before="norm_out",
        take_turns=True,
        signals={"modulated_input": shared_table, "timestep_embedding": OutputOf("adaln_single", pick=1)},
        rows=("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"),
        rows_a_sample=_frames,
        source="as for FLUX.1",
        note="blocks over places and over frames, in turn, are one stack",
    )


def _frames(x: Tensor) -> int:
    return x.shape[2]
