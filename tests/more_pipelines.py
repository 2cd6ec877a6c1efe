"""Further real pipelines from tiny random components: SDXL, Chroma, sound, ControlNet."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny_pipelines import (
    POOLED_DIM,
    TEXT,
    TEXT_DIM,
    Shape,
    TinyPipeline,
    _image_vae,
    _rows,
    _sd3_arguments,
    _sd_arguments,
    _sd_components,
)

_IMAGE = {"small": (1, 32, 32)}
_TIME_IDS = 6


def _sdxl_components() -> tuple[str, dict[str, Any]]:
    return "StableDiffusionXLPipeline", {
        "vae": _image_vae(4),
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": diffusers.UNet2DConditionModel.from_config(
            _sd_components()[1]["unet"].config,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=POOLED_DIM + 4 * _TIME_IDS,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(),
        "add_watermarker": False,
    }


def _chroma_components() -> tuple[str, dict[str, Any]]:
    return "ChromaPipeline", {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": _image_vae(4),
        "text_encoder": None,
        "tokenizer": None,
        "transformer": diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=(4, 4, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    }


def _chroma_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    masks = {name: torch.ones(batch, TEXT) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return _sd_arguments(shape, seed, batch, guidance) | masks


def _audio_components() -> tuple[str, dict[str, Any]]:
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    return "StableAudioPipeline", {
        "vae": diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        ),
        "text_encoder": None,
        "projection_model": StableAudioProjectionModel(
            text_encoder_dim=TEXT_DIM, conditioning_dim=TEXT_DIM, min_value=0, max_value=32
        ),
        "tokenizer": None,
        "transformer": diffusers.StableAudioDiTModel(
            sample_size=4,
            in_channels=3,
            num_layers=2,
            attention_head_dim=4,
            num_key_value_attention_heads=2,
            out_channels=3,
            cross_attention_dim=TEXT_DIM,
            time_proj_dim=8,
            global_states_input_dim=2 * TEXT_DIM,
            cross_attention_input_dim=TEXT_DIM,
        ),
        "scheduler": diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    }


def _audio_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = _sd_arguments(shape, seed, batch, guidance)
    del arguments["height"], arguments["width"]
    return arguments | {name: torch.ones(batch, TEXT) for name in ("attention_mask", "negative_attention_mask")}


def _controlnet_components() -> tuple[str, dict[str, Any]]:
    _, components = _sd_components()
    network = diffusers.ControlNetModel.from_unet(components["unet"], conditioning_embedding_out_channels=(4, 8))
    return "StableDiffusionControlNetPipeline", components | {"controlnet": network}


def _controlnet_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    image = _rows(seed, batch, 3, shape[1], shape[2], salt=5).sigmoid()
    return _sd_arguments(shape, seed, batch, guidance) | {"image": image}


MORE: dict[str, TinyPipeline] = {
    entry.name: entry
    for entry in (
        TinyPipeline(
            "sdxl",
            sizes=_IMAGE,
            denoisers=("unet",),
            doubled="uncond",
            components=_sdxl_components,
            arguments=_sd3_arguments,
        ),
        TinyPipeline("chroma", sizes=_IMAGE, components=_chroma_components, arguments=_chroma_arguments),
        TinyPipeline("stable-audio", sizes=_IMAGE, components=_audio_components, arguments=_audio_arguments),
        TinyPipeline(
            "sd-controlnet",
            sizes=_IMAGE,
            denoisers=("unet",),
            doubled="uncond",
            components=_controlnet_components,
            arguments=_controlnet_arguments,
        ),
    )
}
