"""Tiny, randomly initialised models of the diffusers transformer classes, with inputs as their pipelines pass them.

Sequence lengths and head sizes are as small as the classes allow. Row i of the inputs depends on the seed and on i,
never on how many rows there are.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from further_models import FURTHER
from making_models import (
    REVERSED,
    SIGMA,
    Make,
    RowMaker,
    Shape,
    TinyModel,
    angles,
    as_list,
    constant,
    entry,
    full_mask,
    grid,
    label,
    mask,
)


def _wan(batch_of: dict[str, Shape | RowMaker], *, t_shape: Shape = (), **config: Any) -> TinyModel:
    base = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    }
    return entry("WanTransformer3DModel", base | config, Make(batch_of, t_shape=t_shape))


def _wan_vace() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 32,
        "vace_layers": [0, 2],  # the last block takes a hint too: the hint is added after its output
        "vace_in_channels": 6,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (6, 16),
        "control_hidden_states": (6, 2, 4, 4),
    }
    return entry(
        "WanVACETransformer3DModel",
        config,
        Make(rows, shared={"control_hidden_states_scale": torch.tensor([1.0, 0.7])}),
    )


def _ltx() -> TinyModel:
    config = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "num_layers": 3,
        "caption_channels": 12,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (32, 8),
        "encoder_hidden_states": (6, 12),
        "encoder_attention_mask": mask(6),
    }
    return entry("LTXVideoTransformer3DModel", config, Make(rows, {"num_frames": 2, "height": 4, "width": 4}))


def _ltx2() -> TinyModel:
    config = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 2,
        "caption_channels": 12,
        "rope_double_precision": False,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (32, 8),
        "audio_hidden_states": (5, 4),
        "encoder_hidden_states": (6, 12),
        "audio_encoder_hidden_states": (6, 12),
        "encoder_attention_mask": mask(6),
        "audio_encoder_attention_mask": mask(6),
    }
    shared = {"num_frames": 2, "height": 4, "width": 4, "fps": 24.0, "audio_num_frames": 5}
    return entry("LTX2VideoTransformer3DModel", config, Make(rows, shared))


def _cogvideox(*, new: bool) -> TinyModel:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 12,
        "text_embed_dim": 16,
        "num_layers": 3,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "max_text_seq_length": 6,
    }
    rows: dict[str, Shape | RowMaker] = {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (6, 16)}
    shared: dict[str, Any] = {}
    if new:
        config |= {
            "patch_size_t": 2,
            "patch_bias": False,
            "ofs_embed_dim": 12,
            "use_rotary_positional_embeddings": True,
        }
        rows["hidden_states"] = (4, 4, 4, 4)
        shared = {"image_rotary_emb": angles(8, 8), "ofs": torch.full((1,), 2.0)}
    return entry("CogVideoXTransformer3DModel", config, Make(rows, shared, t_dtype=torch.int64))


def _hunyuan_video() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "guidance_embeds": True,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (6, 16),
        "encoder_attention_mask": mask(6),
        "pooled_projections": (8,),
        "guidance": constant(value=6000.0),
    }
    return entry("HunyuanVideoTransformer3DModel", config, Make(rows))


def _hunyuan_video_15() -> TinyModel:
    config = {
        "in_channels": 9,  # latent, condition and mask
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "text_embed_2_dim": 12,
        "image_embed_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (9, 2, 3, 3),
        "encoder_hidden_states": (6, 16),
        "encoder_attention_mask": mask(6),
        "encoder_hidden_states_2": (4, 12),
        "encoder_attention_mask_2": mask(4),
        "image_embeds": (5, 8),
    }
    return entry("HunyuanVideo15Transformer3DModel", config, Make(rows))


def _mochi() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 3,
        "pooled_projection_dim": 12,
        "in_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "max_sequence_length": 6,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (6, 16),
        "encoder_attention_mask": mask(6, dtype=torch.bool),
    }
    return entry("MochiTransformer3DModel", config, Make(rows), t_start=100.0, t_end=900.0)


def _cosmos() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "adaln_lora_dim": 4,
        "max_size": (4, 16, 16),
        "concat_padding_mask": False,  # it would need torchvision
    }
    rows: dict[str, Shape | RowMaker] = {"hidden_states": (4, 2, 4, 4), "encoder_hidden_states": (6, 12)}
    return entry("CosmosTransformer3DModel", config, Make(rows, {"fps": 24}, t=0.5), **SIGMA)


def _flux(*, singles: int) -> TinyModel:
    guided = singles > 0  # FLUX.1-dev, otherwise as FLUX.1-schnell
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": singles,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 8,
        "guidance_embeds": guided,
        "axes_dims_rope": (4, 6, 6),
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (16, 4),
        "encoder_hidden_states": (5, 12),
        "pooled_projections": (8,),
    }
    if guided:
        rows["guidance"] = constant(value=3.5)
    shared = {"img_ids": grid(4, 4), "txt_ids": torch.zeros(5, 3)}
    return entry("FluxTransformer2DModel", config, Make(rows, shared, t=0.5), **SIGMA)


def _flux2() -> TinyModel:
    config = {
        "in_channels": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "timestep_guidance_channels": 16,
        "mlp_ratio": 2.0,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (16, 8),
        "encoder_hidden_states": (5, 12),
        "guidance": constant(value=4.0),
        "img_ids": lambda _: grid(4, 4, axes=4)[None],
        "txt_ids": lambda _: torch.zeros(1, 5, 4),
    }
    return entry("Flux2Transformer2DModel", config, Make(rows, t=0.5), **SIGMA)


def _qwen_image() -> TinyModel:
    config = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 6, 6),
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (16, 16),
        "encoder_hidden_states": (5, 12),
        "encoder_hidden_states_mask": mask(5),
        "img_shapes": lambda _: [[(1, 4, 4)]],
    }
    return entry("QwenImageTransformer2DModel", config, Make(rows, t=0.5), **SIGMA)


def _sd3() -> TinyModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
        "qk_norm": "rms_norm",
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states": (5, 12),
        "pooled_projections": (8,),
    }
    return entry("SD3Transformer2DModel", config, Make(rows))


def _pixart() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "cross_attention_dim": 24,
        "sample_size": 8,
        "caption_channels": 12,
        "use_additional_conditions": True,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states": (5, 12),
        "encoder_attention_mask": mask(5),
        "added_cond_kwargs": lambda _: {
            "resolution": torch.tensor([[512.0, 512.0]]),
            "aspect_ratio": torch.tensor([[1.0]]),
        },
    }
    return entry("PixArtTransformer2DModel", config, Make(rows, t_dtype=torch.int64))


def _sana() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 4,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 4, 4),
        "encoder_hidden_states": (5, 12),
        "encoder_attention_mask": mask(5),
    }
    return entry("SanaTransformer2DModel", config, Make(rows))


def _dit() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 8,
    }
    rows: dict[str, Shape | RowMaker] = {"hidden_states": (4, 8, 8), "class_labels": label(1000)}
    return entry("DiTTransformer2DModel", config, Make(rows, t_dtype=torch.int64))


def _lumina2() -> TinyModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 3,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 8,
        "axes_dim_rope": (4, 6, 6),
        "axes_lens": (16, 8, 8),
        "cap_feat_dim": 12,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states": (5, 12),
        "encoder_attention_mask": full_mask(5),  # with masks that differ the joint sequence depends on the batch
    }
    return entry("Lumina2Transformer2DModel", config, Make(rows, t=0.5), **REVERSED)


def _hidream() -> TinyModel:
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_channels": [12, 10],
        "text_emb_dim": 8,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (4, 2, 2),
        "max_resolution": (8, 8),
        "llama_layers": [0, 1, 2, 3],
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states_t5": (5, 12),
        "pooled_embeds": (8,),
    }
    columns = {"encoder_hidden_states_llama3": (4, 5, 10)}
    return entry("HiDreamImageTransformer2DModel", config, Make(rows, columns=columns, t_name="timesteps"))


def _auraflow() -> TinyModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 64,
    }
    rows: dict[str, Shape | RowMaker] = {"hidden_states": (4, 8, 8), "encoder_hidden_states": (5, 12)}
    return entry("AuraFlowTransformer2DModel", config, Make(rows, t=0.5), **SIGMA)


def _chroma() -> TinyModel:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 6, 6),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 16,
        "approximator_layers": 2,
    }
    text_mask = mask(5, dtype=torch.bool)
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (16, 4),
        "encoder_hidden_states": (5, 12),
        "attention_mask": lambda generator: torch.cat([text_mask(generator), torch.ones(1, 16, dtype=torch.bool)], 1),
    }
    shared = {"img_ids": grid(4, 4), "txt_ids": torch.zeros(5, 3)}
    return entry("ChromaTransformer2DModel", config, Make(rows, shared, t=0.5), **SIGMA)


def _z_image() -> TinyModel:
    config = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 12,
        "axes_dims": [4, 6, 6],
        "axes_lens": [96, 8, 8],
    }
    rows: dict[str, Shape | RowMaker] = {"x": as_list(4, 1, 8, 8), "cap_feats": as_list(5, 12)}
    return entry("ZImageTransformer2DModel", config, Make(rows, t_name="t", t=0.5), x_name="x", **REVERSED)


def _stable_audio() -> TinyModel:
    config = {
        "sample_size": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_attention_heads": 2,
        "cross_attention_dim": 16,
        "time_proj_dim": 8,
        "global_states_input_dim": 12,
        "cross_attention_input_dim": 12,
    }
    rows: dict[str, Shape | RowMaker] = {
        "hidden_states": (4, 12),
        "encoder_hidden_states": (5, 12),
        "global_hidden_states": (1, 12),
    }
    shared = {"rotary_embedding": angles(13, 4)}  # one token more: the global one; half of a head's size
    return entry("StableAudioDiTModel", config, Make(rows, shared, t=0.5, t_shape=None), **SIGMA)


def _unet() -> TinyModel:
    config = {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    # 9 columns, no multiple of the U-Net's step: it takes the size to upsample to from its skip connections
    rows = {"sample": (4, 8, 9), "encoder_hidden_states": (6, 16)}
    return entry("UNet2DConditionModel", config, Make(rows), x_name="sample")


EVERY_TINY: dict[str, TinyModel] = {
    "WanTransformer3DModel": _wan({"hidden_states": (4, 2, 4, 4), "encoder_hidden_states": (6, 16)}),
    "WanTransformer3DModel-i2v": _wan(
        {
            "hidden_states": (8, 2, 4, 4),  # latent and condition
            "encoder_hidden_states": (512, 16),  # the attention takes what exceeds 512 tokens for the image's
            "encoder_hidden_states_image": (5, 8),
        },
        in_channels=8,
        image_dim=8,
        added_kv_proj_dim=24,
    ),
    "WanTransformer3DModel-ti2v": _wan(  # one t a token
        {"hidden_states": (4, 2, 4, 4), "encoder_hidden_states": (6, 16)}, t_shape=(8,)
    ),
    "WanVACETransformer3DModel": _wan_vace(),
    "LTXVideoTransformer3DModel": _ltx(),
    "LTX2VideoTransformer3DModel": _ltx2(),
    "CogVideoXTransformer3DModel": _cogvideox(new=False),
    "CogVideoXTransformer3DModel-1.5": _cogvideox(new=True),
    "HunyuanVideoTransformer3DModel": _hunyuan_video(),
    "HunyuanVideo15Transformer3DModel": _hunyuan_video_15(),
    "MochiTransformer3DModel": _mochi(),
    "CosmosTransformer3DModel": _cosmos(),
    "FluxTransformer2DModel": _flux(singles=2),
    "FluxTransformer2DModel-double": _flux(singles=0),
    "Flux2Transformer2DModel": _flux2(),
    "QwenImageTransformer2DModel": _qwen_image(),
    "SD3Transformer2DModel": _sd3(),
    "PixArtTransformer2DModel": _pixart(),
    "SanaTransformer2DModel": _sana(),
    "DiTTransformer2DModel": _dit(),
    "Lumina2Transformer2DModel": _lumina2(),
    "HiDreamImageTransformer2DModel": _hidream(),
    "AuraFlowTransformer2DModel": _auraflow(),
    "ChromaTransformer2DModel": _chroma(),
    "ZImageTransformer2DModel": _z_image(),
    "StableAudioDiTModel": _stable_audio(),
    "UNet2DConditionModel": _unet(),
    **FURTHER,
}

TINY = {key: tiny for key, tiny in EVERY_TINY.items() if hasattr(diffusers, key.partition("-")[0])}
"""By class name, those of the installed diffusers; a second configuration of a class has a suffix after a dash."""


def moved(tiny: TinyModel, inputs: dict[str, Any], seed: int = 9) -> dict[str, Any]:
    """The inputs of a later step: another latent, another t."""
    generator = torch.Generator().manual_seed(seed)
    later = dict(inputs)
    x = inputs[tiny.x_name]

    def step(v: Tensor) -> Tensor:
        return v + 0.1 * torch.randn(v.shape, generator=generator)

    later[tiny.x_name] = [step(v) for v in x] if isinstance(x, list) else step(x)
    t = inputs[tiny.t_name]
    later[tiny.t_name] = t + (tiny.t_end - tiny.t_start) / 10 * (t != 0)
    return later


def level(tiny: TinyModel, inputs: dict[str, Any]) -> float:
    """The noise level of a call."""
    return float(inputs[tiny.t_name].max())


def declared(tiny: TinyModel, *points: dict[str, Any]) -> list[float]:
    """The noise levels of the calls of a run, to declare it by."""
    return [level(tiny, p) for p in points]


def first_tensor(output: Any) -> Tensor:
    """Return the prediction from what a model returned."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output
