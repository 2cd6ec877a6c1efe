"""The trained video DiT: a small `WanTransformer3DModel` that draws moving digits (flow matching, velocity)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

WEIGHTS = Path(__file__).parent / "weights" / "video-dit.safetensors"
TWIN_WEIGHTS = WEIGHTS.with_name("video-dit-twin.safetensors")
"""Weights trained in the same way from another seed."""

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 128,
    "ffn_dim": 384,
    "num_layers": 4,
    "cross_attn_norm": True,
}


def build_video_dit() -> WanTransformer3DModel:
    """Build the untrained network, 1.09 M parameters.

    It maps latents ``(B, 4, 8, 12, 12)`` at timestep ``t = 1000 * sigma`` and a caption ``(B, 3, 32)`` to the
    velocity ``noise - data`` of ``x = (1 - sigma) * data + sigma * noise``.
    """
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**CONFIG)


def load_video_dit(weights: Path = WEIGHTS) -> WanTransformer3DModel:
    """Build the network with trained weights, float32, in evaluation mode.

    Args:
        weights: the model's own, or `TWIN_WEIGHTS`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    model = build_video_dit()
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)
