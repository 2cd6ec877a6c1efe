"""Real diffusers pipelines from tiny random components: nothing is downloaded, no text encoder runs.

`PIPELINES` names them. Two builds of one pipeline are bit for bit equal, and row i of a batch gets the noise and the
prompt embeddings that it would get in any other batch size, so that runs can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from attrs import field, frozen
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Frames, height and width in pixels; one frame for an image."""

TEXT = 6
"""Tokens of a prompt."""

TEXT_DIM = 16
POOLED_DIM = 12


@frozen(eq=False)
class TinyPipeline:
    """One pipeline class with tiny components, and how it is called.

    Attributes:
        name: its key in `PIPELINES`.
        sizes: what ``size`` may be, in pixels.
        denoisers: the pipeline's attributes that hold a denoiser, in the order of the run.
        doubled: which half of the doubled batch comes first under guidance, ``"cond"`` or ``"uncond"``; ``None`` where
            the branches are separate calls (cond first in all of them).
        contexts: names that the pipeline gives to ``cache_context``, in the order of the calls under guidance; empty
            where it uses none.
        callbacks: whether the pipeline takes ``callback_on_step_end`` and can be interrupted.
    """

    name: str
    sizes: Mapping[str, Shape]
    denoisers: tuple[str, ...] = ("transformer",)
    doubled: str | None = None
    contexts: tuple[str, ...] = ()
    callbacks: bool = True
    _components: Callable[[], tuple[str, dict[str, Any]]] = field(kw_only=True)
    _arguments: Callable[[Shape, int, int, bool], dict[str, Any]] = field(kw_only=True)

    def build(self) -> diffusers.DiffusionPipeline:
        """Return a new pipeline; always with the same parameters, without touching the global generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            class_name, components = self._components()
            for component in components.values():
                if isinstance(component, nn.Module):
                    component.eval().requires_grad_(False)
            for name in self.denoisers:
                _fill_zeros(components[name])
        pipe = getattr(diffusers, class_name)(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(
        self,
        pipe: diffusers.DiffusionPipeline,
        *,
        steps: int = 6,
        seed: int = 0,
        size: str = "small",
        batch: int = 1,
        guidance: bool = True,
        **extra: Any,
    ) -> Tensor:
        """Run the pipeline and return the final latents (the decoded image where the pipeline always decodes).

        Args:
            pipe: what `build` returned.
            steps: number of inference steps.
            seed: of noise and conditions; row i depends on it and on i only.
            size: a key of ``sizes``.
            batch: number of prompts.
            guidance: whether there are two branches, cond and uncond.
            extra: more arguments of the pipeline's ``__call__``; they replace those made here.

        Returns:
            ``(batch, ...)``, or ``(batch, tokens, channels)`` where the pipeline packs its latents; float32.
        """
        if size not in self.sizes:
            raise ValueError(f"{self.name} has the sizes {', '.join(self.sizes)}, got {size!r}")
        arguments = self._arguments(self.sizes[size], seed, batch, guidance)
        # One generator a row: the noise of a row does not depend on the size of the batch.
        generators = [torch.Generator("cpu").manual_seed(1000 * seed + row) for row in range(batch)]
        arguments.update(num_inference_steps=steps, generator=generators, return_dict=False)
        return pipe(**{**arguments, **extra})[0]

    def modules(self, pipe: diffusers.DiffusionPipeline) -> tuple[nn.Module, ...]:
        """Return the denoisers of ``pipe``."""
        return tuple(getattr(pipe, name) for name in self.denoisers)


def _fill_zeros(model: nn.Module) -> None:
    """Give parameters that start at zero a small noise: with them a block would change nothing."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)


def _rows(seed: int, batch: int, *shape: int, salt: int) -> Tensor:
    """Standard normal ``(batch, *shape)``; row i depends on ``seed``, ``salt`` and i only."""
    rows = []
    for row in range(batch):
        generator = torch.Generator().manual_seed(1_000_003 * (1 + salt) + 1000 * seed + row)
        rows.append(torch.randn(1, *shape, generator=generator))
    return torch.cat(rows)


def _prompt(seed: int, batch: int, dim: int = TEXT_DIM) -> Tensor:
    return _rows(seed, batch, TEXT, dim, salt=0)


def _negative(seed: int, batch: int, dim: int = TEXT_DIM) -> Tensor:
    return _rows(seed, batch, TEXT, dim, salt=1)


def _padding_mask(batch: int, padded: int) -> Tensor:
    """``(batch, TEXT)`` of ones with ``padded`` zeros at the end."""
    mask = torch.ones(batch, TEXT, dtype=torch.int64)
    mask[:, TEXT - padded :] = 0
    return mask


# Wan -----------------------------------------------------------------------------------------------------------------

_WAN_CHANNELS = 4


def _wan_transformer(in_channels: int) -> nn.Module:
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=_WAN_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )


def _wan_components(two_transformers: bool = False) -> tuple[str, dict[str, Any]]:
    components: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": _wan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "transformer": _wan_transformer(_WAN_CHANNELS),
    }
    if two_transformers:
        components.update(transformer_2=_wan_transformer(_WAN_CHANNELS), boundary_ratio=0.5)
    return "WanPipeline", components


def _wan_vae() -> nn.Module:
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=_WAN_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * _WAN_CHANNELS,
        latents_std=[1.0] * _WAN_CHANNELS,
    )


def _wan_i2v_components() -> tuple[str, dict[str, Any]]:
    _, components = _wan_components()
    # Latents, the condition's latents, and a mask with one channel for each frame of a latent frame.
    components["transformer"] = _wan_transformer(2 * _WAN_CHANNELS + 4)
    return "WanImageToVideoPipeline", components


def _wan_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    frames, height, width = shape
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "guidance_scale": 4.0 if guidance else 1.0,
        "num_frames": frames,
        "height": height,
        "width": width,
        "output_type": "latent",
    }


def _wan_i2v_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    # The pipeline takes one image for the whole batch.
    image = _rows(seed, 1, 3, *shape[1:], salt=2).sigmoid()
    return {"image": image, **_wan_arguments(shape, seed, batch, guidance)}


# LTX -----------------------------------------------------------------------------------------------------------------

_LTX_CHANNELS = 8


def _ltx_components() -> tuple[str, dict[str, Any]]:
    return "LTXPipeline", {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLLTXVideo(
            latent_channels=_LTX_CHANNELS,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
        ),
        "text_encoder": None,
        "tokenizer": None,
        "transformer": diffusers.LTXVideoTransformer3DModel(
            in_channels=_LTX_CHANNELS,
            out_channels=_LTX_CHANNELS,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=3,
            caption_channels=TEXT_DIM,
        ),
    }


def _ltx_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = _wan_arguments(shape, seed, batch, guidance)
    arguments["prompt_attention_mask"] = _padding_mask(batch, 1)
    arguments["negative_prompt_attention_mask"] = _padding_mask(batch, 2)
    return arguments


# CogVideoX -----------------------------------------------------------------------------------------------------------

_COGVIDEOX_CHANNELS = 4


def _cogvideox_components() -> tuple[str, dict[str, Any]]:
    return "CogVideoXPipeline", {
        "tokenizer": None,
        "text_encoder": None,
        "vae": diffusers.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=_COGVIDEOX_CHANNELS,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "transformer": diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=_COGVIDEOX_CHANNELS,
            out_channels=_COGVIDEOX_CHANNELS,
            time_embed_dim=16,
            text_embed_dim=TEXT_DIM,
            num_layers=3,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=TEXT,
            use_rotary_positional_embeddings=True,
        ),
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    }


# HunyuanVideo --------------------------------------------------------------------------------------------------------

_HUNYUAN_CHANNELS = 4


def _hunyuan_video_components() -> tuple[str, dict[str, Any]]:
    return "HunyuanVideoPipeline", {
        "text_encoder": None,
        "tokenizer": None,
        "transformer": diffusers.HunyuanVideoTransformer3DModel(
            in_channels=_HUNYUAN_CHANNELS,
            out_channels=_HUNYUAN_CHANNELS,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            rope_axes_dim=(4, 4, 4),
        ),
        "vae": diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=_HUNYUAN_CHANNELS,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "text_encoder_2": None,
        "tokenizer_2": None,
    }


def _hunyuan_video_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = _wan_arguments(shape, seed, batch, guidance)
    arguments.update(
        pooled_prompt_embeds=_rows(seed, batch, POOLED_DIM, salt=3),
        negative_pooled_prompt_embeds=_rows(seed, batch, POOLED_DIM, salt=4),
        prompt_attention_mask=_padding_mask(batch, 1),
        negative_prompt_attention_mask=_padding_mask(batch, 2),
        true_cfg_scale=4.0 if guidance else 1.0,
        guidance_scale=6.0,  # an input of the distilled model, not a second branch
    )
    return arguments


# FLUX.1 --------------------------------------------------------------------------------------------------------------


def _image_vae(latent_channels: int) -> nn.Module:
    """A VAE that halves height and width."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=2,
        shift_factor=0.0,
    )


def _flux_components() -> tuple[str, dict[str, Any]]:
    return "FluxPipeline", {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": _image_vae(4),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 4),
        ),
    }


def _flux_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    return {
        "prompt_embeds": _prompt(seed, batch),
        "negative_prompt_embeds": _negative(seed, batch),
        "pooled_prompt_embeds": _rows(seed, batch, POOLED_DIM, salt=3),
        "negative_pooled_prompt_embeds": _rows(seed, batch, POOLED_DIM, salt=4),
        "true_cfg_scale": 2.0 if guidance else 1.0,
        "height": shape[1],
        "width": shape[2],
        "output_type": "latent",
    }


# Qwen-Image ----------------------------------------------------------------------------------------------------------


def _qwen_image_components() -> tuple[str, dict[str, Any]]:
    return "QwenImagePipeline", {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "text_encoder": None,
        "tokenizer": None,
        "transformer": diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            axes_dims_rope=(4, 4, 4),
        ),
    }


def _qwen_image_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = {
        "prompt_embeds": _prompt(seed, batch),
        "prompt_embeds_mask": _padding_mask(batch, 1),
        "true_cfg_scale": 2.0 if guidance else 1.0,
        "height": shape[1],
        "width": shape[2],
        "output_type": "latent",
    }
    if guidance:
        # Given without guidance, the pipeline warns about them.
        arguments["negative_prompt_embeds"] = _negative(seed, batch)
        arguments["negative_prompt_embeds_mask"] = _padding_mask(batch, 2)
    return arguments


# Stable Diffusion 3 --------------------------------------------------------------------------------------------------


def _sd3_components() -> tuple[str, dict[str, Any]]:
    return "StableDiffusion3Pipeline", {
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_DIM,
            caption_projection_dim=16,
            pooled_projection_dim=POOLED_DIM,
            out_channels=4,
            pos_embed_max_size=16,
        ),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": _image_vae(4),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }


def _sd3_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = _flux_arguments(shape, seed, batch, guidance)
    del arguments["true_cfg_scale"]
    return {**arguments, "guidance_scale": 4.0 if guidance else 1.0}


# DiT -----------------------------------------------------------------------------------------------------------------


def _dit_components() -> tuple[str, dict[str, Any]]:
    return "DiTPipeline", {
        "transformer": diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,  # the second half is the learned variance, as in the published model
            num_layers=3,
            norm_num_groups=4,
            sample_size=8,
            # The pipeline's label of the uncond branch is 1000, and the table must have it.
            num_embeds_ada_norm=1000,
        ),
        "vae": _image_vae(4),
        "scheduler": diffusers.DDIMScheduler(),
    }


def _dit_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    labels = [(37 * seed + 101 * row + 5) % 1000 for row in range(batch)]
    return {"class_labels": labels, "guidance_scale": 4.0 if guidance else 1.0, "output_type": "pt"}


# Stable Diffusion, a U-Net -------------------------------------------------------------------------------------------


def _sd_components() -> tuple[str, dict[str, Any]]:
    return "StableDiffusionPipeline", {
        "vae": _image_vae(4),
        "text_encoder": None,
        "tokenizer": None,
        "unet": diffusers.UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=TEXT_DIM,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sd_arguments(shape: Shape, seed: int, batch: int, guidance: bool) -> dict[str, Any]:
    arguments = _sd3_arguments(shape, seed, batch, guidance)
    del arguments["pooled_prompt_embeds"], arguments["negative_pooled_prompt_embeds"]
    return arguments


# ---------------------------------------------------------------------------------------------------------------------

_VIDEO = {"small": (5, 32, 32), "large": (9, 48, 64)}
_IMAGE = {"small": (1, 16, 16), "large": (1, 24, 32)}

PIPELINES: dict[str, TinyPipeline] = {
    entry.name: entry
    for entry in (
        TinyPipeline(
            "wan",
            sizes=_VIDEO,
            contexts=("cond", "uncond"),
            components=_wan_components,
            arguments=_wan_arguments,
        ),
        TinyPipeline(
            "wan-2.2",
            sizes=_VIDEO,
            denoisers=("transformer", "transformer_2"),
            contexts=("cond", "uncond"),
            components=functools.partial(_wan_components, two_transformers=True),
            arguments=_wan_arguments,
        ),
        TinyPipeline(
            "wan-i2v",
            sizes=_VIDEO,
            contexts=("cond", "uncond"),
            components=_wan_i2v_components,
            arguments=_wan_i2v_arguments,
        ),
        TinyPipeline(
            "ltx",
            sizes={"small": (9, 64, 64), "large": (17, 96, 128)},
            doubled="uncond",
            contexts=("cond_uncond",),
            components=_ltx_components,
            arguments=_ltx_arguments,
        ),
        TinyPipeline(
            "cogvideox",
            sizes=_VIDEO,
            doubled="uncond",
            contexts=("cond_uncond",),
            components=_cogvideox_components,
            arguments=_wan_arguments,
        ),
        TinyPipeline(
            "hunyuan-video",
            sizes=_VIDEO,
            contexts=("cond", "uncond"),
            components=_hunyuan_video_components,
            arguments=_hunyuan_video_arguments,
        ),
        TinyPipeline(
            "flux",
            sizes=_IMAGE,
            contexts=("cond", "uncond"),
            components=_flux_components,
            arguments=_flux_arguments,
        ),
        TinyPipeline(
            "qwen-image",
            sizes={"small": (1, 64, 64), "large": (1, 96, 128)},
            contexts=("cond", "uncond"),
            components=_qwen_image_components,
            arguments=_qwen_image_arguments,
        ),
        TinyPipeline(
            "sd3",
            sizes=_IMAGE,
            doubled="uncond",
            components=_sd3_components,
            arguments=_sd3_arguments,
        ),
        TinyPipeline(
            "dit",
            sizes={"small": (1, 16, 16)},  # fixed by the model's config, as is that of a published one
            doubled="cond",
            callbacks=False,
            components=_dit_components,
            arguments=_dit_arguments,
        ),
        TinyPipeline(
            "sd",
            sizes=_IMAGE,
            denoisers=("unet",),
            doubled="uncond",
            components=_sd_components,
            arguments=_sd_arguments,
        ),
    )
}
