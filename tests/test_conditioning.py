"""Which branch a call belongs to, and whether its conditioning changed: told from the values, whoever holds them."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from hypothesis import given
from hypothesis import strategies as st

import cachepolicies
from cachepolicies import CachedDenoiser
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.engine.conditioning import Conditioned, differs, same_objects, weakly
from cachepolicies.policies import Uniform
from enabled_pipelines import one_thread as one_thread
from tiny_models import TINY

TIMES = (900.0, 800.0, 700.0, 600.0, 500.0, 400.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)


# --- knowing a value again -------------------------------------------------------------------------------------------


@given(size=st.integers(1, 9000), dtype=st.sampled_from(DTYPES), at=st.integers(0, 8999), seed=st.integers(0, 2**16))
def test_a_tensor_is_known_again_by_its_values_when_it_is_gone(size, dtype, at, seed):
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype)
    kept = weakly({"text": drawn.clone()})
    assert not differs(kept, {"text": drawn})
    assert not same_objects(kept, {"text": drawn})
    other = drawn.clone()
    other[at % size] = ~drawn[at % size] if dtype == torch.bool else drawn[at % size] + 1
    assert differs(kept, {"text": other})


def test_places_count():
    drawn = torch.randn(3, 5000)
    kept = weakly((drawn.clone(),))
    assert differs(kept, (drawn.flip(0),))
    assert differs(kept, (drawn.reshape(5000, 3),))
    assert not differs(kept, (drawn.t().contiguous().t(),))


@pytest.mark.parametrize("size", [4, 9000])
def test_a_tensor_that_was_written_on_is_another(size):
    drawn = torch.randn(size)
    kept = weakly({"text": drawn})
    assert same_objects(kept, {"text": drawn})
    drawn[0] += 1
    assert not same_objects(kept, {"text": drawn})
    assert differs(kept, {"text": drawn})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, 0),
        (1, True),
        ("a", "b"),
        ([1, 2], [1, 3]),
        ({"a": 1}, {"b": 1}),
        (np.ones(3), np.zeros(3)),
        (torch.ones(3), np.ones(3)),
        ({"a": [torch.ones(3)]}, {"a": [torch.zeros(3)]}),
    ],
)
def test_values_of_other_kinds(one, other):
    assert not differs(weakly(one), one)
    assert differs(weakly(one), other)
    assert differs(weakly(other), one)


def test_what_changes_at_every_step_is_expected_to():
    known = Conditioned.of({"features": torch.zeros(2, 3), "encoder_hidden_states": torch.ones(2, 3), "guidance": 1.0})
    seen = []
    for k in range(1, 5):
        now = {"features": torch.full((2, 3), float(k)), "encoder_hidden_states": torch.ones(2, 3), "guidance": 1.0 + k}
        seen.append(known.changes(now))
        known.note(now)
    assert seen == [("features",), ("features",), (), ()]
    now["encoder_hidden_states"] = torch.zeros(2, 3)
    assert known.changes(now) == ("encoder_hidden_states",)


# --- in a run --------------------------------------------------------------------------------------------------------


def asked(x, t, text, scale=1.0):
    return x * 0.9 + text + scale


@pytest.mark.parametrize("branch", [None, "cond"])
@pytest.mark.parametrize("substitute", ["hold", "linear:time=t"])
def test_a_branch_whose_conditioning_changes_is_evaluated_at_the_change(branch, substitute):
    denoiser = CachedDenoiser(asked, Uniform(every=3), substitute=substitute)
    texts = [torch.zeros(2, 1)] * 4 + [torch.ones(2, 1)] * 2
    x = torch.ones(2, 3)
    with denoiser.run(timesteps=TIMES) as run:
        outputs = [denoiser(x, t, text, branch=branch) for t, text in zip(TIMES, texts, strict=True)]
        reasons = [record.reason[0] for record in run.trace.records]
    assert [record.evaluated[0] for record in run.trace.records] == [True, False, False, True, True, False]
    assert reasons[4] is EngineReason.CONDITIONING_CHANGED
    assert torch.equal(outputs[4], asked(x, 0, texts[4]))
    assert torch.equal(outputs[5], outputs[4])  # nothing of the text before is extrapolated


@pytest.mark.parametrize("size", [3, 9000])
def test_conditioning_that_is_built_anew_is_the_same(size):
    text = torch.randn(2, size)
    denoiser = CachedDenoiser(asked, Uniform(every=2))
    x = torch.ones(2, size)
    with denoiser.run(timesteps=TIMES) as run:
        for t in TIMES:
            denoiser(x, t, text + 0)
    assert run.trace.nfe == 3


def test_scales_and_levels_may_change():
    denoiser = CachedDenoiser(asked, Uniform(every=2))
    with denoiser.run(timesteps=TIMES) as run:
        for k, t in enumerate(TIMES):
            denoiser(torch.ones(2, 3), t, torch.zeros(2, 3), scale=torch.full((2, 1), 1.0 + k)[:, 0].mean())
    assert run.trace.nfe == 3


@pytest.mark.parametrize("prompts", [1, 9, 20])
def test_any_number_of_prompts_over_the_life_of_an_enabled_model(prompts):
    tiny = TINY["WanTransformer3DModel"]
    model = tiny.build()
    kept = []
    with torch.no_grad(), cachepolicies.enable(model, "never"):
        for k in range(prompts):
            kept.append(tiny.inputs(1, seed=k))
            for t in TIMES[:2]:
                model(**kept[-1] | {"timestep": torch.tensor([t])})


# --- passes of one step ----------------------------------------------------------------------------------------------


def flux(kind: str) -> Any:
    sizes: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (4, 4, 4),
        "guidance_embeds": True,
    }
    torch.manual_seed(0)
    parts: dict[str, Any] = {"transformer": diffusers.FluxTransformer2DModel(**sizes)}
    if kind == "FluxControlNetPipeline":
        control = diffusers.FluxControlNetModel(**sizes)
        for parameter in control.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        parts["controlnet"] = control
    pipe = getattr(diffusers, kind)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=1, shift_factor=0.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, factor: float = -1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    text, pooled, image = (torch.randn(*shape, generator=generator) for shape in ((1, 6, 16), (1, 12), (1, 3, 16, 16)))
    own: dict[str, dict[str, Any]] = {
        "FluxControlNetPipeline": {"control_image": image},
        "FluxImg2ImgPipeline": {"image": image, "strength": 0.7},
    }
    images: torch.Tensor = pipe(
        height=16,
        width=16,
        num_inference_steps=10,
        true_cfg_scale=2.0,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=factor * text,
        negative_pooled_prompt_embeds=factor * pooled,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **own.get(type(pipe).__name__, {}),
    ).images
    return images


@pytest.mark.parametrize("kind", ["FluxPipeline", "FluxImg2ImgPipeline", "FluxControlNetPipeline"])
@pytest.mark.parametrize("factor", [-1.0, 1.0])
def test_true_guidance_whose_branches_nobody_names(kind, factor):
    """With a ControlNet, whose features differ from step to step; and with one prompt in both branches."""
    pipe = flux(kind)
    plain = drawn(pipe, factor)
    with cachepolicies.enable(pipe, "never"):
        assert torch.equal(drawn(pipe, factor), plain)
    with cachepolicies.enable(pipe, Uniform(every=2)) as enabled:
        drawn(pipe, factor)
        trace = enabled.trace
    assert len({record.branch for record in trace.records}) == 2
    if factor == 1.0 and kind != "FluxPipeline":  # which names its passes; what differs is inside of the model
        assert {r.reason[0] for r in trace.records if r.branch.endswith("again")} == {EngineReason.CALLED_AGAIN}
        assert trace.nfe < trace.calls
    else:
        assert trace.nfe == 2 * math.ceil(trace.calls / 4)


class Watched(diffusers.PerturbedAttentionGuidance):
    """Says at which steps the perturbed pass is the conditional one."""

    def forward(self, pred_cond, pred_uncond=None, pred_cond_skip=None):
        if pred_cond_skip is not None:
            SEEN.append(bool(torch.equal(pred_cond, pred_cond_skip)))
        return super().forward(pred_cond, pred_uncond, pred_cond_skip)


SEEN: list[bool] = []


@pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_the_passes_of_a_modular_pipelines_guider_are_branches_of_their_own(scheduler, start, scale):
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    ).requires_grad_(False)
    blocks = StableDiffusionXLAutoBlocks()
    for name in [each for each in blocks.sub_blocks if each != "denoise"]:
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    layers = diffusers.LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_attention_scores=True,
        skip_ff=False,
    )
    guider = Watched(
        guidance_scale=scale,
        perturbed_guidance_scale=3.0,
        perturbed_guidance_config=layers,
        perturbed_guidance_start=start,
        perturbed_guidance_stop=1.0,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=2)
    pipe.update_components(unet=unet, vae=vae, guider=guider, scheduler=scheduler())
    embeds = {
        "prompt_embeds": torch.randn(1, 6, 16),
        "negative_prompt_embeds": torch.randn(1, 6, 16),
        "pooled_prompt_embeds": torch.randn(1, 12),
        "negative_pooled_prompt_embeds": torch.randn(1, 12),
    }

    def draw() -> Any:
        SEEN.clear()
        noise = torch.Generator().manual_seed(0)
        return pipe(**embeds, height=16, width=16, num_inference_steps=10, generator=noise, output="latents")

    plain = draw()
    assert SEEN
    assert not any(SEEN)
    with cachepolicies.enable(pipe, "never"):
        assert torch.equal(draw(), plain)
    with cachepolicies.enable(pipe, Uniform(every=2)) as enabled:
        draw()
        trace = enabled.trace
    assert not any(SEEN)
    assert len({record.branch for record in trace.records}) == (3 if scale > 1 else 2)
    assert trace.nfe < trace.calls


def test_the_other_branch_keeps_what_it_remembers():
    denoiser = CachedDenoiser(asked, Uniform(every=6), branches="independent")
    x, steady = torch.ones(2, 3), torch.zeros(2, 1)
    with denoiser.run(timesteps=TIMES) as run:
        for k, t in enumerate(TIMES):
            denoiser(x, t, torch.full((2, 1), float(k >= 4)), branch="cond")
            denoiser(x, t, steady, branch="uncond")
        found = {name: [r.evaluated[0] for r in run.trace.records if r.branch == name] for name in ("cond", "uncond")}
    assert found["cond"] == [True, False, False, False, True, False]
    assert found["uncond"] == [True, False, False, False, False, False]
