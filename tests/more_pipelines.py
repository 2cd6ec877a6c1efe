"""Further real pipelines from tiny random components: SDXL, Chroma, sound, ControlNet."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tiny_pipelines import POOLED_DIM, TEXT, TEXT_DIM, Shape, TinyPipeline, _image_vae, _negative, _prompt, _rows

_IMAGE = {"small": (1, 32, 32)}
_TIME_IDS = 6


def _unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=TEXT_DIM,
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def _sdxl_components() -> tuple[str, dict[str, Any]]:
    return "StableDiffusionXLPipeline", {
        "vae": _image_vae(4),
        "text_encoder": None,
        "text_encoder_2": None,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": _unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=POOLED_DIM + 4 * _TIME_IDS,
        ),
        "scheduler": diffusers.EulerDiscreteScheduler(),
        "add_watermarker": False,
    }


def _sdxl_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "pooled_prompt_embeds": _rows(seed, batch, POOLED_DIM, salt=3),
        "negative_pooled_prompt_embeds": _rows(seed, batch, POOLED_DIM, salt=4),
        "guidance_scale": 3.0 if guidance else 1.0,
        "height": shape[1],
        "width": shape[2],
        "output_type": "latent",
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
    mask = torch.ones(batch, TEXT)
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask.clone(),
        "guidance_scale": 3.0 if guidance else 1.0,
        "height": shape[1],
        "width": shape[2],
        "output_type": "latent",
    }


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
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "attention_mask": torch.ones(batch, TEXT),
        "negative_attention_mask": torch.ones(batch, TEXT),
        "guidance_scale": 3.0 if guidance else 1.0,
        "output_type": "latent",
    }


def _controlnet_components() -> tuple[str, dict[str, Any]]:
    unet = _unet()
    return "StableDiffusionControlNetPipeline", {
        "vae": _image_vae(4),
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet,
        "controlnet": diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)),
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _controlnet_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "image": _rows(seed, batch, 3, shape[1], shape[2], salt=5).sigmoid(),
        "guidance_scale": 3.0 if guidance else 1.0,
        "height": shape[1],
        "width": shape[2],
        "output_type": "latent",
    }


MORE: dict[str, TinyPipeline] = {
    entry.name: entry
    for entry in (
        TinyPipeline(
            "sdxl",
            sizes=_IMAGE,
            denoisers=("unet",),
            doubled="uncond",
            components=_sdxl_components,
            arguments=_sdxl_arguments,
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
