"""Tiny models of further classes of diffusers; those of `tiny_models` are a part of the same table."""

from __future__ import annotations

from typing import Any

import torch

from making_models import (
    SIGMA,
    Make,
    RowMaker,
    Shape,
    TinyModel,
    angles,
    constant,
    entry,
    full_mask,
    grid,
    mask,
)

Rows = dict[str, Shape | RowMaker]

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
_VIDEO: Rows = {"hidden_states": (4, 2, 4, 4), "encoder_hidden_states": (6, 16)}


def _wan_animate() -> TinyModel:
    config: dict[str, Any] = _WAN | {
        "in_channels": 12,  # two latents and a mask
        "latent_channels": 4,
        "image_dim": 8,
        "added_kv_proj_dim": 24,
        "motion_encoder_size": 16,
        "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4},
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "num_layers": 4,
        "inject_face_latents_blocks": 2,  # behind the first and the third
    }
    rows: Rows = {
        "hidden_states": (12, 3, 4, 4),
        "encoder_hidden_states": (512, 16),  # the attention takes what exceeds 512 tokens for the image's
        "encoder_hidden_states_image": (5, 8),
        "pose_hidden_states": (4, 2, 4, 4),
        "face_pixel_values": (3, 8, 16, 16),
    }
    return entry("WanAnimateTransformer3DModel", config, Make(rows))


def _chronoedit() -> TinyModel:
    return entry("ChronoEditTransformer3DModel", dict(_WAN), Make(_VIDEO))


def _skyreels() -> TinyModel:
    return entry("SkyReelsV2Transformer3DModel", dict(_WAN), Make(_VIDEO))


def _helios(*, history: bool) -> TinyModel:
    config = {name: value for name, value in _WAN.items() if name != "rope_max_seq_len"} | {"rope_dim": (4, 4, 4)}
    rows: Rows = dict(_VIDEO)
    if history:
        rows |= {
            "latents_history_short": (4, 2, 4, 4),
            "latents_history_mid": (4, 2, 4, 4),
            "latents_history_long": (4, 4, 4, 4),
        }
        shared = {
            "indices_hidden_states": torch.arange(8, 10)[None],
            "indices_latents_history_short": torch.arange(6, 8)[None],
            "indices_latents_history_mid": torch.arange(4, 6)[None],
            "indices_latents_history_long": torch.arange(0, 4)[None],
        }
        return entry("HeliosTransformer3DModel", config, Make(rows, shared))
    return entry("HeliosTransformer3DModel", config, Make(rows))


def _kandinsky5() -> TinyModel:
    config = {
        "in_visual_dim": 4,
        "in_text_dim": 12,
        "in_text_dim2": 8,
        "time_dim": 16,
        "out_visual_dim": 4,
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 3,
        "axes_dims": (4, 6, 6),
    }
    rows: Rows = {"hidden_states": (2, 4, 4, 4), "encoder_hidden_states": (6, 12), "pooled_projections": (8,)}
    shared = {
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
        "text_rope_pos": torch.arange(6),
    }
    return entry("Kandinsky5Transformer3DModel", config, Make(rows, shared))


def _latte() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 16,
        "attention_bias": True,
        "sample_size": 4,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 12,
        "video_length": 3,
    }
    rows: Rows = {"hidden_states": (4, 3, 4, 4), "encoder_hidden_states": (6, 12)}
    return entry("LatteTransformer3DModel", config, Make(rows, t_dtype=torch.int64))


def _cogview4() -> TinyModel:
    config = {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "text_embed_dim": 12,
        "time_embed_dim": 8,
        "condition_dim": 4,
        "pos_embed_max_size": 16,
        "sample_size": 8,
        "rope_axes_dim": (8, 8),
    }
    rows: Rows = {
        "hidden_states": (4, 4, 6),
        "encoder_hidden_states": (6, 12),
        "original_size": constant(2, value=32.0),
        "target_size": constant(2, value=32.0),
        "crop_coords": constant(2, value=0.0),
    }
    return entry("CogView4Transformer2DModel", config, Make(rows))


def _easyanimate() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "num_layers": 3,
        "mmdit_layers": 2,
        "time_embed_dim": 8,
        "text_embed_dim": 12,
        "sample_width": 8,
        "sample_height": 8,
    }
    rows: Rows = {"hidden_states": (4, 2, 4, 4), "encoder_hidden_states": (6, 12)}
    return entry("EasyAnimateTransformer3DModel", config, Make(rows))


def _framepack() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
        "has_image_proj": True,
        "image_proj_dim": 8,
        "has_clean_x_embedder": True,
    }
    rows: Rows = {
        "hidden_states": (4, 2, 8, 8),
        "encoder_hidden_states": (6, 16),
        "encoder_attention_mask": full_mask(6),
        "pooled_projections": (8,),
        "image_embeds": (5, 8),
        "guidance": constant(value=6000.0),
        "latents_clean": (4, 2, 8, 8),
        "latents_history_2x": (4, 2, 8, 8),
        "latents_history_4x": (4, 4, 8, 8),
    }
    shared = {
        "indices_latents": torch.arange(8, 10),
        "indices_latents_clean": torch.tensor([0, 10]),
        "indices_latents_history_2x": torch.arange(6, 8),
        "indices_latents_history_4x": torch.arange(2, 6),
    }
    return entry("HunyuanVideoFramepackTransformer3DModel", config, Make(rows, shared))


def _hunyuan_image() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "text_embed_2_dim": 12,
        "rope_axes_dim": (8, 8),
    }
    rows: Rows = {
        "hidden_states": (4, 4, 6),
        "encoder_hidden_states": (6, 16),
        "encoder_attention_mask": mask(6),
        "encoder_hidden_states_2": (4, 12),
        "encoder_attention_mask_2": mask(4),
    }
    return entry("HunyuanImageTransformer2DModel", config, Make(rows))


_IMAGE_TOKENS: Rows = {"hidden_states": (16, 4), "encoder_hidden_states": (5, 12)}
_IDS = {"img_ids": grid(4, 4), "txt_ids": torch.zeros(5, 3)}
_DOUBLE_AND_SINGLE = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}


def _bria() -> TinyModel:
    return entry("BriaTransformer2DModel", dict(_DOUBLE_AND_SINGLE), Make(_IMAGE_TOKENS, _IDS))


def _bria_fibo() -> TinyModel:
    config = _DOUBLE_AND_SINGLE | {"text_encoder_dim": 8}
    layers = lambda g: {f"{i}": torch.randn(1, 5, 8, generator=g) for i in range(4)}  # noqa: E731
    make = Make(_IMAGE_TOKENS | {"text_encoder_layers": layers}, _IDS)

    def inputs(batch: int, seed: int = 0, t: float | None = None) -> dict[str, Any]:
        made = make(batch, seed, t)
        made["text_encoder_layers"] = list(made["text_encoder_layers"].values())
        return made

    made = entry("BriaFiboTransformer2DModel", config, make)
    return TinyModel(made.build, inputs, batched=made.batched, nested=("text_encoder_layers",))


def _ovis() -> TinyModel:
    config = _DOUBLE_AND_SINGLE | {"out_channels": 4}
    return entry("OvisImageTransformer2DModel", config, Make(_IMAGE_TOKENS, _IDS, t=0.5), **SIGMA)


def _longcat_image() -> TinyModel:
    config = _DOUBLE_AND_SINGLE | {"pooled_projection_dim": 12}
    return entry("LongCatImageTransformer2DModel", config, Make(_IMAGE_TOKENS, _IDS, t=0.5), **SIGMA)


def _longcat_audio(kind: str) -> TinyModel:
    config = {
        "dit_dim": 32,
        "dit_depth": 3,
        "dit_heads": 2,
        "dit_text_dim": 12,
        "latent_dim": 4,
        "adaln_type": kind,
        "adaln_use_text_cond": kind == "global",
        "ff_mult": 2.0,
    }
    rows: Rows = {
        "hidden_states": (12, 4),
        "encoder_hidden_states": (6, 12),
        "encoder_attention_mask": mask(6, dtype=torch.bool),
        "attention_mask": full_mask(12, dtype=torch.bool),
        "latent_cond": (12, 4),
    }
    return entry("LongCatAudioDiTTransformer", config, Make(rows, t=0.5), **SIGMA)


def _stable_audio3() -> TinyModel:
    config = {
        "io_channels": 4,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 1,
        "cond_token_dim": 12,
        "global_cond_dim": 12,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 8,
        "ff_mult": 2.0,
        "num_memory_tokens": 3,
    }
    rows: Rows = {
        "hidden_states": (4, 12),
        "encoder_hidden_states": (5, 12),
        "global_hidden_states": (12,),
        "encoder_attention_mask": mask(5),
        "local_add_cond": (5, 12),
    }
    return entry("StableAudio3DiTModel", config, Make(rows, t=0.5), **SIGMA)


def _sana_video() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 3,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 8,
        "rope_max_seq_len": 32,
    }
    rows: Rows = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (6, 8),
        "encoder_attention_mask": mask(6),
    }
    return entry("SanaVideoTransformer3DModel", config, Make(rows))


def _allegro() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "cross_attention_dim": 48,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 8,
        "caption_channels": 8,
    }
    rows: Rows = {
        "hidden_states": (4, 2, 4, 4),
        "encoder_hidden_states": (6, 8),
        "encoder_attention_mask": mask(6),
    }
    return entry("AllegroTransformer3DModel", config, Make(rows, {"image_rotary_emb": _allegro_angles()}))


def _allegro_angles() -> tuple[Any, Any]:
    places = [torch.tensor([[i // 4, (i // 2) % 2, i % 2] for i in range(8)])[:, axis][None] for axis in range(3)]
    tables = [angles(2, 8) for _ in range(3)]
    return tables, tuple(places)


def _hunyuan_dit() -> TinyModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 16,
        "num_layers": 4,
        "mlp_ratio": 2.0,
        "cross_attention_dim": 16,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
        "text_len": 5,
        "text_len_t5": 4,
    }
    rows: Rows = {
        "hidden_states": (4, 8, 8),
        "encoder_hidden_states": (5, 16),
        "text_embedding_mask": mask(5),
        "encoder_hidden_states_t5": (4, 16),
        "text_embedding_mask_t5": mask(4),
        "image_meta_size": constant(6, value=32.0),
        "style": lambda _: torch.zeros(1, dtype=torch.int64),
    }
    return entry("HunyuanDiT2DModel", config, Make(rows, {"image_rotary_emb": angles(16, 8)}))


def _qwen_image21() -> TinyModel:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 12,
        "axes_dims_rope": (4, 6, 6),
    }
    rows: Rows = {
        "hidden_states": (16, 4),
        "encoder_hidden_states": (5, 12),
        "encoder_hidden_states_mask": mask(5),
        "img_mask": lambda _: torch.tensor([[False] * 5 + [True] * 4]),  # a slot of the text is 4 tokens of the image
        "img_shapes": lambda _: [[(1, 4, 4)]],
    }
    return entry("QwenImage21Transformer2DModel", config, Make(rows, t=0.5), **SIGMA)


FURTHER: dict[str, TinyModel] = {
    "WanAnimateTransformer3DModel": _wan_animate(),
    "ChronoEditTransformer3DModel": _chronoedit(),
    "SkyReelsV2Transformer3DModel": _skyreels(),
    "HeliosTransformer3DModel": _helios(history=True),
    "HeliosTransformer3DModel-first": _helios(history=False),
    "Kandinsky5Transformer3DModel": _kandinsky5(),
    "LatteTransformer3DModel": _latte(),
    "CogView4Transformer2DModel": _cogview4(),
    "EasyAnimateTransformer3DModel": _easyanimate(),
    "HunyuanVideoFramepackTransformer3DModel": _framepack(),
    "HunyuanImageTransformer2DModel": _hunyuan_image(),
    "BriaTransformer2DModel": _bria(),
    "BriaFiboTransformer2DModel": _bria_fibo(),
    "OvisImageTransformer2DModel": _ovis(),
    "LongCatImageTransformer2DModel": _longcat_image(),
    "LongCatAudioDiTTransformer": _longcat_audio("global"),
    "LongCatAudioDiTTransformer-local": _longcat_audio("local"),
    "StableAudio3DiTModel": _stable_audio3(),
    "SanaVideoTransformer3DModel": _sana_video(),
    "AllegroTransformer3DModel": _allegro(),
    "HunyuanDiT2DModel": _hunyuan_dit(),
    "QwenImage21Transformer2DModel": _qwen_image21(),
}
"""As `tiny_models.TINY`, of which it is a part."""
