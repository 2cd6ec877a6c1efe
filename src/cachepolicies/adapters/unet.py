"""The U-Net of Stable Diffusion 1, 2 and XL: everything between its first convolution and its last norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachepolicies.adapters.base import Adapter, Blocks, OutputOf


def unet() -> Adapter:
    """Return the adapter of ``UNet2DConditionModel``."""
    return Adapter(
        "UNet2DConditionModel",
        stack=(Blocks("down_blocks", _down), Blocks("mid_block"), Blocks("up_blocks")),
        ends_before="conv_norm_out",
        signals={"timestep_embedding": OutputOf("time_embedding")},
        rows=(
            "sample",
            "timestep",
            "encoder_hidden_states",
            "class_labels",
            "timestep_cond",
            "attention_mask",
            "added_cond_kwargs",
            "down_block_additional_residuals",
            "mid_block_additional_residual",
            "encoder_attention_mask",
        ),
        source="as for the transformers",
        note="down, middle and up blocks are one stack; no authors' code cuts here",
    )


def _down(block: Any, arguments: Mapping[str, Any]) -> Any:
    """Return the hidden states, and as many skip connections as the up blocks will take off."""
    hidden = arguments["hidden_states"]
    skips = len(block.resnets) + (block.downsamplers is not None)
    return hidden, (hidden,) * skips
