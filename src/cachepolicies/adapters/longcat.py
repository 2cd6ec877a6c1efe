"""LongCat-Image, double blocks on two streams and single blocks on both, and LongCat-AudioDiT, one audio stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from cachepolicies.adapters._kinds import JOINT, PARALLEL
from cachepolicies.adapters._latents import channels_last, patches_by_ids
from cachepolicies.adapters._signals import adaptive_norm
from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf

_BOTH = ("encoder_hidden_states", "hidden_states")


def longcat_image() -> Adapter:
    """Return the adapter of ``LongCatImageTransformer2DModel``."""
    return Adapter(
        "LongCatImageTransformer2DModel",
        stack=(
            Blocks("transformer_blocks", _BOTH, kinds=JOINT),
            Blocks("single_transformer_blocks", _BOTH, kinds=PARALLEL),
        ),
        signals={"modulated_input": adaptive_norm, "timestep_embedding": OutputOf("time_embed.timestep_embedder")},
        unpack=patches_by_ids,
        clock="unit",
        rows=("hidden_states", "encoder_hidden_states", "timestep", "guidance"),
        source="as for FLUX.1",
        note="the image stream over double and single blocks; the text is not used behind them",
    )


def longcat_audio() -> Adapter:
    """Return the adapter of ``LongCatAudioDiTTransformer``."""
    return Adapter(
        "LongCatAudioDiTTransformer",
        stack=(Blocks("blocks", kinds={SPATIAL: "self_attn", CROSS: "cross_attn", MLP: "ffn"}),),
        signals={"modulated_input": _modulated_input, "timestep_embedding": OutputOf("time_embed")},
        unpack=channels_last,
        channels=-1,
        clock="unit",
        rows=(
            "hidden_states",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "timestep",
            "attention_mask",
            "latent_cond",
        ),
        source="as for FLUX.1",
        note="the skip connection around the blocks is not part of the residual",
    )


def _modulated_input(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the audio tokens, normalised, scaled and shifted as the first block's attention gets them."""
    hidden, shared = arguments["hidden_states"], arguments.get("adaln_global_out")
    if shared is None:  # every block has a modulation of its own
        modulation = block.adaln_mlp(arguments["timestep_embed"])
    else:
        modulation = shared + block.adaln_scale_shift.unsqueeze(0)
    _, scale, shift = modulation.chunk(6, dim=-1)[:3]
    normalised = functional.layer_norm(hidden.float(), (hidden.shape[-1],), eps=1e-6).type_as(hidden)
    modulated: Tensor = normalised * (1 + scale[:, None]) + shift[:, None]
    return modulated
