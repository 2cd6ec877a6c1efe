"""CogVideoX: a video and a text stream, both changed by every block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cachepolicies.adapters._kinds import SELF
from cachepolicies.adapters._latents import frames_first, grid_of_frames_first
from cachepolicies.adapters._signals import joint_norm
from cachepolicies.contracts.adapter import Adapter, Blocks


def cogvideox() -> Adapter:
    """Return the adapter of ``CogVideoXTransformer3DModel``, 1.0 and 1.5.

    Behind the stack only the video stream is used, so only its residual is kept; the authors keep the text's too, with
    the same output.
    """
    return Adapter(
        "CogVideoXTransformer3DModel",
        stack=(Blocks("transformer_blocks", ("hidden_states", "encoder_hidden_states"), kinds=SELF),),
        signals={"modulated_input": joint_norm, "timestep_embedding": _timestep_embedding},
        unpack=frames_first,
        tokens=grid_of_frames_first,
        channels=2,
        rows=("hidden_states", "encoder_hidden_states", "timestep", "timestep_cond"),
        source="TeaCache4CogVideoX1.5/teacache_sample_video.py, SenCache CogVideoX/sencache.py",
        note="the video stream; the authors remember the text's residual too, which nothing reads",
    )


def _timestep_embedding(block: Any, arguments: Mapping[str, Any]) -> Tensor:
    """Return the embedding of t, with that of the offset where the checkpoint has one (TeaCache4CogVideoX1.5)."""
    embedding: Tensor = arguments["temb"]
    return embedding
