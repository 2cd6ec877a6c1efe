"""The trained sound transformer: one-dimensional, in plain torch, it plays melodies (flow matching, velocity)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cachepolicies.reference.melodies import LENGTH, NOTES, PITCHES

WEIGHTS = Path(__file__).parent / "weights" / "sound-transformer.safetensors"
TWIN_WEIGHTS = WEIGHTS.with_name("sound-transformer-twin.safetensors")
"""Weights trained in the same way from another seed."""

LATENT_SHAPE = (1, LENGTH)
PATCH = 32
WIDTH = 128
HEADS = 4
DEPTH = 4
FREQUENCIES = 64


class Block(nn.Module):
    """Attention and a feed-forward network, each scaled, shifted and gated by the noise level (DiT, 2212.09748)."""

    def __init__(self) -> None:
        """Build it with gates of zero, so that an untrained block changes nothing."""
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.widen = nn.Linear(WIDTH, 3 * WIDTH)
        self.narrow = nn.Linear(3 * WIDTH, WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, hidden: Tensor, level: Tensor) -> Tensor:
        """Map ``(B, L, 128)`` tokens, given the embedded noise level ``(B, 128)``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(level))[:, None].chunk(6, -1)
        inner = F.layer_norm(hidden, (WIDTH,)) * (1 + scale1) + shift1
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(inner).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + gate1 * self.out(attended)
        inner = F.layer_norm(hidden, (WIDTH,)) * (1 + scale2) + shift2
        widened = F.gelu(self.widen(inner))
        left: Tensor = hidden + gate2 * self.narrow(widened)
        return left


class SoundTransformer(nn.Module):
    """A transformer over pieces of a wave, with the notes of the melody as further tokens; 1.06 M parameters."""

    def __init__(self) -> None:
        """Build it untrained."""
        super().__init__()
        self.patch_in = nn.Linear(PATCH, WIDTH)
        self.patch_out = nn.Linear(WIDTH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH // PATCH, WIDTH))
        self.note = nn.Parameter(0.02 * torch.randn(NOTES, len(PITCHES), WIDTH))
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)

    def forward(self, x: Tensor, t: Tensor, pitch: Tensor) -> Tensor:
        """Predict the velocity ``noise - data`` of ``x = (1 - sigma) * data + sigma * noise``.

        Args:
            x: ``(B, 1, 2048)`` latent.
            t: ``(B,)`` or a scalar, ``1000 * sigma``.
            pitch: ``(B, 4)`` int64, the index of every note in `PITCHES`.

        Returns:
            ``(B, 1, 2048)``.
        """
        level = self.level(_waves_of(t.to(x).expand(x.shape[0])))
        tokens = self.patch_in(x.reshape(x.shape[0], -1, PATCH)) + self.position
        notes = self.note[torch.arange(NOTES), pitch]
        hidden = torch.cat([notes, tokens], 1)
        for block in self.blocks:
            hidden = block(hidden, level)
        velocity: Tensor = self.patch_out(F.layer_norm(hidden[:, NOTES:], (WIDTH,)))
        return velocity.reshape(x.shape)


def _waves_of(t: Tensor) -> Tensor:
    """Embed t in [0, 1000] as sines and cosines, ``(B, 2 * FREQUENCIES)``."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(FREQUENCIES, device=t.device) / FREQUENCIES)
    angles = t[:, None] * rates.to(t)
    return torch.cat([angles.cos(), angles.sin()], -1)


def load_sound_transformer(weights: Path = WEIGHTS) -> SoundTransformer:
    """Build the network with trained weights, float32, in evaluation mode.

    Args:
        weights: the model's own, or `TWIN_WEIGHTS`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    model = SoundTransformer()
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)
