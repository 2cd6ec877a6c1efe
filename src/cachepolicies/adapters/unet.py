"""The U-Net of Stable Diffusion 1, 2 and XL: everything between its first convolution and its last norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.contracts.adapter import CROSS, MLP, SPATIAL, Adapter, Blocks, OutputOf

_KINDS = {
    SPATIAL: "attentions.*.transformer_blocks.*.attn1",
    CROSS: "attentions.*.transformer_blocks.*.attn2",
    MLP: "attentions.*.transformer_blocks.*.ff",
}


def unet() -> Adapter:
    """Return the adapter of ``UNet2DConditionModel``."""
    return Adapter(
        "UNet2DConditionModel",
        stack=(
            Blocks("down_blocks", _down, kinds=_KINDS),
            Blocks("mid_block", kinds=_KINDS),
            Blocks("up_blocks", kinds=_KINDS),
        ),
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
            "down_intrablock_additional_residuals",
            "mid_block_additional_residual",
            "encoder_attention_mask",
        ),
        source="as for the transformers",
        note="down, middle and up blocks are one stack; no authors' code cuts here",
    )


def _down(block: Any, arguments: Mapping[str, Any]) -> Any:
    """Return what a down block does, in shape: its last state, and the skip connections that the up blocks take off.

    They are empty, but their shapes are right: a ControlNet's features are added to them.
    """
    hidden: Tensor = arguments["hidden_states"]
    rows, _, height, width = hidden.shape
    skips = [hidden.new_zeros(rows, resnet.out_channels, height, width) for resnet in block.resnets]
    for down in block.downsamplers or ():
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        skips.append(hidden.new_zeros(rows, down.out_channels, height, width))
    return skips[-1], tuple(skips)
