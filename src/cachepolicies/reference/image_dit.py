"""The trained image DiT: a small `DiTTransformer2DModel` that draws digits (variance preserving, noise prediction)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

WEIGHTS = Path(__file__).parent / "weights" / "image-dit.safetensors"
TWIN_WEIGHTS = WEIGHTS.with_name("image-dit-twin.safetensors")
"""Weights trained in the same way from another seed."""

LATENT_SHAPE = (1, 16, 16)
PIXEL_MEAN, PIXEL_STD = 0.3, 0.32
NULL_LABEL = 10
"""Class label that means *no class*, for classifier-free guidance."""

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 5,
    "sample_size": 16,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}


def build_image_dit() -> DiTTransformer2DModel:
    """Build the untrained network, 1.0 M parameters.

    It maps standardised images ``(B, 1, 16, 16)`` at an integer timestep ``t`` of the 1000-step linear-beta schedule
    and class labels ``(B,)`` to the noise of ``x = alpha(t) * data + sigma(t) * noise``.
    """
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(**CONFIG)


def load_image_dit(weights: Path = WEIGHTS) -> DiTTransformer2DModel:
    """Build the network with trained weights, float32, in evaluation mode.

    Args:
        weights: the model's own, or `TWIN_WEIGHTS`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    model = build_image_dit()
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)
