"""The trained photo U-Net: a small `UNet2DModel` that draws crops of photographs (EDM, unguided, data prediction)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cachepolicies.reference.photographs import SIDE

if TYPE_CHECKING:
    from diffusers import UNet2DModel

WEIGHTS = Path(__file__).parent / "weights" / "photo-unet.safetensors"
TWIN_WEIGHTS = WEIGHTS.with_name("photo-unet-twin.safetensors")
"""Weights trained in the same way from another seed."""

LATENT_SHAPE = (3, SIDE, SIDE)
SIGMA_DATA = 0.5
"""Standard deviation of the data that the preconditioning assumes."""

CONFIG: dict[str, Any] = {
    "sample_size": SIDE,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 48, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 32,
}


class Preconditioned(nn.Module):
    """A network as a denoiser in the convention of k-diffusion: ``model(x, sigma)`` returns the data.

    ``D = c_skip x + c_out F(c_in x, c_noise)`` with the factors of Karras et al., arXiv 2206.00364, table 1 (EDM).
    """

    def __init__(self, network: UNet2DModel) -> None:
        """Wrap a network that is called as ``network(x, t, return_dict=False)``."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict the data.

        Args:
            x: ``(B, 3, 24, 24)`` data plus sigma times noise.
            sigma: ``(B,)`` or a scalar, the noise level.

        Returns:
            ``(B, 3, 24, 24)`` the expected data.
        """
        sigma = sigma.to(x).expand(x.shape[0])
        level = sigma[:, None, None, None]
        scale = (level.square() + SIGMA_DATA**2).rsqrt()
        (raw,) = self.network(scale * x, 0.25 * sigma.log(), return_dict=False)
        data: Tensor = (SIGMA_DATA * scale).square() * x + level * SIGMA_DATA * scale * raw
        return data


def build_photo_unet() -> Preconditioned:
    """Build the untrained denoiser, 0.95 M parameters, of `LATENT_SHAPE` latents."""
    from diffusers import UNet2DModel

    return Preconditioned(UNet2DModel(**CONFIG))


def load_photo_unet(weights: Path = WEIGHTS) -> Preconditioned:
    """Build the denoiser with trained weights, float32, in evaluation mode.

    Args:
        weights: the model's own, or `TWIN_WEIGHTS`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    model = build_photo_unet()
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)


def training_levels(n: int, generator: torch.Generator) -> Tensor:
    """Draw noise levels, ``ln(sigma)`` normal with mean -1.2 and standard deviation 1.2 (EDM, table 1). ``(n,)``."""
    return (1.2 * torch.randn(n, generator=generator) - 1.2).exp()
