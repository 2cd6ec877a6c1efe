"""Tiny models of the classes of diffusers that have no adapter, for the table of classes in the documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from making_models import SIGMA, Make, RowMaker, Shape, TinyModel, angles, as_list, constant, entry, full_mask, grid

Rows = dict[str, Shape | RowMaker]
_UNIT = 0.5
"""A noise level of classes that count from 1 (noise) to 0 (data)."""


def _of(
    class_name: str, config: dict[str, Any], rows: Rows, shared: dict[str, Any] | None = None, **rest: Any
) -> TinyModel:
    if rest.get("t") == _UNIT:
        rest |= SIGMA
    made = {name: rest.pop(name) for name in ("t", "t_name", "t_shape", "t_dtype") if name in rest}
    return entry(class_name, config, Make(rows, shared or {}, **made), **rest)


_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
_UNET_3D = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
_WAN = {
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


def _ace_step() -> TinyModel:
    config = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "in_channels": 12,
        "audio_acoustic_hidden_dim": 4,
        "encoder_hidden_size": 16,
    }
    rows: Rows = {"hidden_states": (8, 4), "timestep_r": constant(value=0.5), "encoder_hidden_states": (5, 16)}
    return _of("AceStepTransformer1DModel", config, {**rows, "context_latents": (8, 8)}, t=_UNIT)


def _prior() -> TinyModel:
    config = {**_HEADS, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 5, "additional_embeddings": 4}
    rows: Rows = {
        "hidden_states": (12,),
        "proj_embedding": (12,),
        "encoder_hidden_states": (5, 12),
        "attention_mask": full_mask(5, dtype=torch.bool),
    }
    return _of("PriorTransformer", config, rows)


def _t5_film() -> TinyModel:
    config = {
        "input_dims": 4,
        "targets_length": 8,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "d_kv": 8,
        "d_ff": 16,
        "dropout_rate": 0.0,
    }
    shared = {"encodings_and_masks": lambda batch: [(torch.ones(batch, 5, 16), torch.ones(batch, 5))]}
    return _of(
        "T5FilmDecoder",
        config,
        {"decoder_input_tokens": (8, 4)},
        shared,
        t_name="decoder_noise_time",
        x_name="decoder_input_tokens",
        t=_UNIT,
    )


def _anyflow(kind: str) -> TinyModel:
    config: dict[str, Any] = dict(_WAN)
    rows: Rows = {
        "hidden_states": (2, 4, 4, 4),
        "encoder_hidden_states": (6, 16),
        "r_timestep": lambda _: torch.full((1, 2), 400.0),
    }
    shared: dict[str, Any] = {}
    if kind == "AnyFlowFARTransformer3DModel":
        config |= {"chunk_partition": (1, 1), "full_chunk_limit": 2}
        shared = {"chunk_partition": [1, 1]}
    return _of(kind, config, rows, shared, t_shape=(2,))


def _ernie() -> TinyModel:
    config = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "text_in_dim": 12,
        "rope_axes_dim": (4, 6, 6),
    }
    rows: Rows = {
        "hidden_states": (4, 3, 3),
        "text_bth": (5, 12),
        "text_lens": lambda _: torch.tensor([5]),
    }
    return _of("ErnieImageTransformer2DModel", config, rows)


def _ideogram() -> TinyModel:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 8,
        "llm_features_dim": 12,
        "mrope_section": (2, 3, 3),
    }
    rows: Rows = {
        "hidden_states": (9, 4),
        "encoder_hidden_states": (9, 12),
        "position_ids": lambda _: torch.arange(9)[None, :, None].repeat(1, 1, 3),
        "segment_ids": lambda _: torch.zeros(1, 9, dtype=torch.int64),
        "indicator": lambda _: torch.tensor([[3] * 5 + [2] * 4]),
    }
    return _of("Ideogram4Transformer2DModel", config, rows, t=_UNIT)


def _kandinsky6_sr() -> TinyModel:
    config = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 32,
        "num_visual_blocks": 2,
        "axes_dims": (4, 6, 6),
    }
    return _of("Kandinsky6SRTransformer3DModel", config, {"hidden_states": (1, 8, 8, 9)})


def _krea() -> TinyModel:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 16,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 6, 6),
    }
    rows: Rows = {"hidden_states": (16, 4), "encoder_hidden_states": (5, 3, 16)}
    return _of(
        "Krea2Transformer2DModel", config, rows, {"position_ids": torch.cat([torch.zeros(5, 3), grid(4, 4)])}, t=_UNIT
    )


def _minimax_h3() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 32,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "ffn_dim": 32,
        "in_channels": 4,
        "audio_in_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "time_embed_hidden_dim": 16,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    }
    rows: Rows = {"hidden_states": (4, 16), "audio_hidden_states": (3, 4), "encoder_hidden_states": (5, 12)}
    shared = {
        "timestep_indices": torch.zeros(12, dtype=torch.int64),
        "token_tags": torch.tensor([0] * 5 + [1] * 4 + [2] * 3),
        "position_ids": torch.arange(12)[:, None].repeat(1, 3),
        "text_indices": torch.arange(5),
        "video_indices": torch.arange(5, 9),
        "audio_indices": torch.arange(9, 12),
    }
    return _of("MiniMaxH3Transformer3DModel", config, rows, shared, t_shape=None)


def _minimax_music() -> TinyModel:
    config = {
        "in_channels": 4,
        "condition_dim": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ff_inner_dim": 16,
        "rotary_dim": 8,
        "fourier_embedding_dim": 16,
    }
    rows: Rows = {"hidden_states": (4, 6), "encoder_hidden_states": (6, 8)}
    return _of("MiniMaxMusic3Transformer1DModel", config, rows, t=_UNIT)


def _nucleus() -> TinyModel:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 6, 6),
        "moe_enabled": False,
        "capacity_factors": [1.0, 1.0],
        "mlp_ratio": 2.0,
    }
    rows: Rows = {
        "hidden_states": (16, 4),
        "encoder_hidden_states": (5, 12),
        "encoder_hidden_states_mask": full_mask(5),
    }
    return _of("NucleusMoEImageTransformer2DModel", config, rows, {"img_shapes": [(1, 4, 4)]}, t=_UNIT)


def _prx() -> TinyModel:
    config = {
        "in_channels": 4,
        "context_in_dim": 12,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [8, 8],
    }
    return _of("PRXTransformer2DModel", config, {"hidden_states": (4, 4, 4), "encoder_hidden_states": (5, 12)}, t=_UNIT)


def _sana_wm() -> TinyModel:
    config = {
        "in_channels": 4,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "linear_head_dim": 16,
        "caption_channels": 12,
        "mlp_ratio": 2.0,
        "chunk_plucker_post_attn_blocks": 2,
        "mixed_precision": "no",
    }
    rows: Rows = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (1, 5, 12),
        "encoder_attention_mask": full_mask(5),
    }
    return _of("SanaWMTransformer3DModel", config, rows, t_shape=(1, 2), t_dtype=torch.int64)


def _sana_wm_refiner() -> TinyModel:
    config = {
        "in_channels": 8,
        "out_channels": 8,
        **_HEADS,
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
    rows: Rows = {"hidden_states": (8, 8), "encoder_hidden_states": (6, 12)}
    cos, sin = angles(8, 16)
    return _of(
        "SanaWMLTX2RefinerTransformer3DModel", config, rows, {"video_rotary_emb": (cos[None], sin[None])}, t=_UNIT
    )


def _dreamlite_unet() -> TinyModel:
    config = {
        "sample_size": 8,
        "down_block_types": ("DreamLiteCrossAttnDownBlock2D", "DreamLiteCrossAttnNoSelfAttnDownBlock2D"),
        "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return _of("DreamLiteUNetModel", config, {"sample": (4, 8, 8), "encoder_hidden_states": (6, 16)}, x_name="sample")


def _consisid() -> TinyModel:
    config = {
        **_HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 12,
        "text_embed_dim": 16,
        "num_layers": 2,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "max_text_seq_length": 6,
    }
    return _of(
        "ConsisIDTransformer3DModel",
        config,
        {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (6, 16)},
        t_dtype=torch.int64,
    )


def _bria_fibo2() -> TinyModel:
    config = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "cap_feat_dim": 12,
        "injection_layer_ids": (1,),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 2,
        "max_num_gist_tokens": 4,
        "gist_step": 1,
        "gist_min_text_len": 2,
        "gist_max_text_len": 8,
        "axes_dims": (4, 6, 6),
        "axes_lens": (64, 16, 16),
    }
    rows: Rows = {"hidden_states": (4, 4, 4), "encoder_hidden_states": (2, 5, 12)}
    return _of("BriaFibo2Transformer2DModel", config, rows, t=_UNIT)


_SIZES: Rows = {
    "original_size": constant(2, value=32.0),
    "target_size": constant(2, value=32.0),
    "crop_coords": constant(2, value=0.0),
}


def _cogview3() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        **_HEADS,
        "text_embed_dim": 12,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 8,
        "sample_size": 8,
    }
    return _of(
        "CogView3PlusTransformer2DModel",
        config,
        {"hidden_states": (4, 4, 4), "encoder_hidden_states": (6, 12), **_SIZES},
    )


def _flux3() -> TinyModel:
    config = {
        "in_channels": 8,
        "cond_in_channels": 8,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "timestep_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    rows: Rows = {"hidden_states": (16, 8), "encoder_hidden_states": (5, 12)}
    return _of(
        "Flux3Transformer2DModel", config, rows, {"img_ids": grid(4, 4, 4), "txt_ids": torch.zeros(5, 4)}, t=_UNIT
    )


def _glm() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "text_embed_dim": 12,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "prior_vq_quantizer_codebook_size": 16,
    }
    rows: Rows = {
        "hidden_states": (4, 4, 4),
        "encoder_hidden_states": (6, 12),
        "prior_token_id": lambda g: torch.randint(16, (1, 4), generator=g),
        "prior_token_drop": lambda _: torch.zeros(1, 4, dtype=torch.bool),
        "target_size": constant(2, value=32.0),
        "crop_coords": constant(2, value=0.0),
    }
    return _of("GlmImageTransformer2DModel", config, rows)


def _i2vgen() -> TinyModel:
    config = {**_UNET_3D, "attention_head_dim": 4}
    rows: Rows = {
        "sample": (4, 2, 8, 8),
        "fps": lambda _: torch.tensor([8]),
        "image_latents": (4, 2, 8, 8),
        "image_embeddings": (16,),
        "encoder_hidden_states": (6, 16),
    }
    return _of("I2VGenXLUNet", config, rows, x_name="sample")


def _joyimage(kind: str) -> TinyModel:
    config = {
        "in_channels": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "text_dim": 12,
        "mlp_width_ratio": 2.0,
        "num_layers": 2,
        "rope_dim_list": [4, 6, 6],
    }
    if kind == "JoyImageEditTransformer3DModel":
        return _of(kind, config, {"hidden_states": (4, 1, 4, 4), "encoder_hidden_states": (5, 12)})
    rows: Rows = {
        "hidden_states": (4, 4, 1, 2, 2),
        "encoder_hidden_states": (5, 12),
        "encoder_hidden_states_mask": full_mask(5),
        "shape_list": lambda _: [[(1, 2, 2)]],
    }
    return _of(kind, config, rows)


def _kandinsky3() -> TinyModel:
    config = {
        "time_embedding_dim": 16,
        "groups": 4,
        "attention_head_dim": 4,
        "layers_per_block": 3,
        "block_out_channels": (8, 16, 16),
        "cross_attention_dim": 16,
        "encoder_hid_dim": 12,
    }
    rows: Rows = {
        "sample": (4, 8, 8),
        "encoder_hidden_states": (5, 12),
        "encoder_attention_mask": full_mask(5),
    }
    return _of("Kandinsky3UNet", config, rows, x_name="sample")


def _kandinsky6() -> TinyModel:
    config = {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 12,
        "in_text_dim2": 8,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (4, 6, 6),
        "visual_cond": False,
        "in_audio_dim": 4,
        "out_audio_dim": 4,
        "model_dim_a": 32,
        "time_dim_a": 16,
        "ff_dim_a": 32,
        "axes_dims_a": (16,),
    }
    rows: Rows = {
        "hidden_states": (2, 4, 4, 4),
        "encoder_hidden_states": (5, 12),
        "pooled_projections": (8,),
        "audio_hidden_states": (6, 4),
    }
    return _of("Kandinsky6Transformer3DModel", config, rows)


def _lumina() -> TinyModel:
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "cross_attention_dim": 12,
        "ffn_dim_multiplier": 1.0,
    }
    rows: Rows = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states": (5, 12),
        "encoder_mask": full_mask(5),
    }
    rotary = torch.polar(torch.ones(16, 16, 8), torch.zeros(16, 16, 8))
    return _of(
        "LuminaNextDiT2DModel", config, rows, {"image_rotary_emb": rotary, "cross_attention_kwargs": {}}, t=_UNIT
    )


def _motif() -> TinyModel:
    config = {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "rope_axes_dim": (4, 6, 6),
    }
    rows: Rows = {
        "hidden_states": (9, 2, 4, 4),
        "encoder_hidden_states": (5, 12),
        "encoder_attention_mask": full_mask(5),
    }
    return _of("MotifVideoTransformer3DModel", config, rows)


def _omnigen() -> TinyModel:
    config = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "num_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 100,
        "time_step_dim": 8,
        "rope_scaling": {"long_factor": list(range(1, 5)), "short_factor": list(range(1, 5))},
    }
    length = 5 + 1 + 16  # text, t, and the image's patches
    rows: Rows = {
        "hidden_states": (4, 8, 8),
        "input_ids": lambda g: torch.randint(100, (1, 5), generator=g),
        "attention_mask": lambda _: torch.ones(1, length, length),
        "position_ids": lambda _: torch.arange(length)[None],
    }
    return _of("OmniGenTransformer2DModel", config, rows, {"input_img_latents": [], "input_image_sizes": {}}, t=_UNIT)


def _cascade() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "timestep_ratio_embedding_dim": 16,
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "clip_text_pooled_in_channels": 12,
        "timestep_conditioning_type": ("sca",),
        "dropout": 0.0,
    }
    rows: Rows = {"sample": (4, 8, 8), "clip_text_pooled": (1, 12)}
    return _of("StableCascadeUNet", config, rows, t_name="timestep_ratio", x_name="sample", t=_UNIT)


def _transformer_2d(kind: str) -> TinyModel:
    config: dict[str, Any] = {**_HEADS, "in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 12}
    rows: Rows = {"hidden_states": (16, 4, 4), "encoder_hidden_states": (5, 12)}
    return _of(kind, config, rows)


def _temporal() -> TinyModel:
    config = {**_HEADS, "in_channels": 16, "norm_num_groups": 4}
    return _of("TransformerTemporalModel", config, {"hidden_states": (16, 4, 4)}, {"num_frames": 1})


def _unet_1d() -> TinyModel:
    config = {
        "sample_size": 64,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": (32, 32, 32),
        "extra_in_channels": 64,
        "time_embedding_type": "fourier",
    }
    return _of("UNet1DModel", config, {"sample": (2, 64)}, x_name="sample", t_shape=None)


def _unet_2d() -> TinyModel:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    return _of("UNet2DModel", config, {"sample": (3, 8, 8)}, x_name="sample")


def _unet_3d() -> TinyModel:
    rows: Rows = {"sample": (4, 2, 8, 8), "encoder_hidden_states": (6, 16)}
    return _of("UNet3DConditionModel", {**_UNET_3D, "attention_head_dim": 4}, rows, x_name="sample")


def _unet_motion() -> TinyModel:
    config = {
        **_UNET_3D,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
    }
    texts: RowMaker = lambda g: torch.randn(1, 6, 16, generator=g).repeat(2, 1, 1)  # noqa: E731  # once a frame
    rows: Rows = {"sample": (4, 2, 8, 8), "encoder_hidden_states": texts}
    return _of("UNetMotionModel", config, rows, x_name="sample")


def _unet_spatio_temporal() -> TinyModel:
    config = {
        "sample_size": 8,
        "in_channels": 8,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "block_out_channels": (32, 64),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "num_attention_heads": 4,
        "num_frames": 2,
    }
    rows: Rows = {
        "sample": (2, 8, 8, 8),
        "encoder_hidden_states": (1, 16),
        "added_time_ids": constant(3, value=1.0),
    }
    return _of("UNetSpatioTemporalConditionModel", config, rows, x_name="sample")


def _uvit() -> TinyModel:
    config = {
        "hidden_size": 32,
        "cond_embed_dim": 16,
        "micro_cond_encode_dim": 2,
        "micro_cond_embed_dim": 10,
        "encoder_hidden_size": 16,
        "vocab_size": 32,
        "codebook_size": 32,
        "in_channels": 16,
        "block_out_channels": 16,
        "num_res_blocks": 1,
        "block_num_heads": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "sample_size": 4,
    }
    return _of("UVit2DModel", config, {})


def _motion_adapter() -> TinyModel:
    config = {"block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_num_attention_heads": 2}
    return _of("MotionAdapter", {**config, "motion_norm_num_groups": 4}, {})


def _depth_decoder() -> TinyModel:
    config = {
        "hidden_size": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "audio_vocab_size": 16,
        "num_codebooks": 2,
    }
    return _of("MiniMaxMusic3RVQDepthDecoder", config, {})


def _cosmos3() -> TinyModel:
    config = {
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "latent_channel": 4,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "patch_latent_dim": 16,
        "vocab_size": 32,
        "rope_axes_dim": (4, 2, 2),
    }
    return _of("Cosmos3OmniTransformer", config, {})


def _proteina() -> TinyModel:
    config = {
        "nlayers": 2,
        "token_dim": 16,
        "nheads": 2,
        "dim_cond": 8,
        "pair_repr_dim": 8,
        "latent_dim": 4,
        "token_type_emb_dim": 4,
        "cath_emb_dim": 4,
        "t_emb_dim": 8,
        "seq_sep_dim": 8,
        "xt_pair_dist_dim": 4,
        "tri_mult_c": 4,
    }
    return _of("RFD4ProteinaTransformer", config, {})


def _wan_animate2() -> TinyModel:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    config = {
        "text_len": 6,
        "in_dim": 8,
        "dim": 24,
        "ffn_dim": 24,
        "freq_dim": 16,
        "text_dim": 12,
        "out_dim": 4,
        "num_heads": 2,
        "num_layers": 2,
        "use_img_emb": False,
    }
    rows: Rows = {
        "hidden_states": as_list(4, 1, 4, 4),
        "condition_latents": as_list(4, 1, 4, 4),
        "encoder_hidden_states": as_list(5, 12),
    }
    shared: dict[str, Any] = {
        "kv_cache": lambda _: WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 4,
        "offset_grid_sizes": torch.tensor([[1, 2, 2]]),
    }
    return _of("WanAnimate2Transformer3DModel", config, rows, shared)


OTHERS: dict[str, Callable[[], TinyModel]] = {
    "AceStepTransformer1DModel": _ace_step,
    "AnyFlowFARTransformer3DModel": lambda: _anyflow("AnyFlowFARTransformer3DModel"),
    "AnyFlowTransformer3DModel": lambda: _anyflow("AnyFlowTransformer3DModel"),
    "BriaFibo2Transformer2DModel": _bria_fibo2,
    "CogView3PlusTransformer2DModel": _cogview3,
    "ConsisIDTransformer3DModel": _consisid,
    "Cosmos3OmniTransformer": _cosmos3,
    "DreamLiteTransformer2DModel": lambda: _transformer_2d("DreamLiteTransformer2DModel"),
    "DreamLiteUNetModel": _dreamlite_unet,
    "ErnieImageTransformer2DModel": _ernie,
    "Flux3Transformer2DModel": _flux3,
    "GlmImageTransformer2DModel": _glm,
    "I2VGenXLUNet": _i2vgen,
    "Ideogram4Transformer2DModel": _ideogram,
    "JoyImageEditPlusTransformer3DModel": lambda: _joyimage("JoyImageEditPlusTransformer3DModel"),
    "JoyImageEditTransformer3DModel": lambda: _joyimage("JoyImageEditTransformer3DModel"),
    "Kandinsky3UNet": _kandinsky3,
    "Kandinsky6SRTransformer3DModel": _kandinsky6_sr,
    "Kandinsky6Transformer3DModel": _kandinsky6,
    "Krea2Transformer2DModel": _krea,
    "LuminaNextDiT2DModel": _lumina,
    "MiniMaxH3Transformer3DModel": _minimax_h3,
    "MiniMaxMusic3RVQDepthDecoder": _depth_decoder,
    "MiniMaxMusic3Transformer1DModel": _minimax_music,
    "MotifVideoTransformer3DModel": _motif,
    "MotionAdapter": _motion_adapter,
    "NucleusMoEImageTransformer2DModel": _nucleus,
    "OmniGenTransformer2DModel": _omnigen,
    "PRXTransformer2DModel": _prx,
    "PriorTransformer": _prior,
    "RFD4ProteinaTransformer": _proteina,
    "SanaWMLTX2RefinerTransformer3DModel": _sana_wm_refiner,
    "SanaWMTransformer3DModel": _sana_wm,
    "StableCascadeUNet": _cascade,
    "T5FilmDecoder": _t5_film,
    "Transformer2DModel": lambda: _transformer_2d("Transformer2DModel"),
    "TransformerTemporalModel": _temporal,
    "UNet1DModel": _unet_1d,
    "UNet2DModel": _unet_2d,
    "UNet3DConditionModel": _unet_3d,
    "UNetMotionModel": _unet_motion,
    "UNetSpatioTemporalConditionModel": _unet_spatio_temporal,
    "UVit2DModel": _uvit,
    "WanAnimate2Transformer3DModel": _wan_animate2,
}
"""By class name: makes the model, which is not needed unless the table is made."""
