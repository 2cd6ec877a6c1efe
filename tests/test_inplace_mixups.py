"""What must not be mixed up: latents side by side, prompts of one seed, levels in other units, work in place."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from attrs import evolve
from torch import nn

import cachepolicies
from cachepolicies import CachedDenoiser, CacheWarning, InputError, RunError
from cachepolicies.adapters import adapter_of
from cachepolicies.inplace.clock import PipelineClock
from cachepolicies.policies import Uniform
from enabled_pipelines import one_thread as one_thread
from more_pipelines import MORE
from scripted import Scripted
from tiny_models import TINY
from tiny_pipelines import PIPELINES, _sd_components

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")


def flux():
    pipe = PIPELINES["flux"].build()
    pipe.scheduler.set_timesteps(6)
    tiny = TINY["FluxTransformer2DModel"]
    return pipe, tiny, tiny.build()


def test_two_latents_side_by_side_are_evaluated_in_full_unless_they_are_named():
    pipe, tiny, network = flux()
    pipe.transformer = network
    now = tiny.inputs(1)
    other = now | {"hidden_states": now["hidden_states"] + 1.0}
    levels = [step.expand(1) / 1000 for step in pipe.scheduler.timesteps]
    with torch.no_grad():
        expected = [network(**each | {"timestep": t})[0] for t in levels for each in (now, other)]
    cachepolicies.enable(pipe, Uniform(every=2))
    with torch.no_grad():
        with pytest.warns(cachepolicies.CacheWarning, match="several latents go through the run in turn") as said:
            found = [network(**each | {"timestep": t})[0] for t in levels for each in (now, other)]
        assert len(said) == 1
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        pipe.scheduler.set_timesteps(6)
        # named apart, each has its own cache
        for step in pipe.scheduler.timesteps:
            for name, inputs in (("left", now), ("right", other)):
                with network.cache_context(name):
                    network(**inputs | {"timestep": step.expand(1) / 1000})
    assert {r.branch for r in cachepolicies.trace(pipe).records} == {"left", "right"}


@pytest.mark.parametrize("site", ["blocks", "output"])
def test_generations_that_take_turns_on_one_module_have_a_run_each(site):
    tiny = TINY["WanTransformer3DModel"]
    network, levels = tiny.build(), (900.0, 750.0, 600.0, 450.0, 300.0, 150.0)
    points = [[tiny.inputs(1, seed=10 * who + k, t=t) for k, t in enumerate(levels)] for who in range(2)]
    with torch.no_grad(), cachepolicies.enable(network, Uniform(every=2), site=site) as enabled:

        def generation(inputs, told):
            with enabled.run(levels) as run:
                for point in inputs:
                    yield network(**point)[0]
                told.append(run.trace.to_dict())

        records: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
        alone = [list(generation(inputs, records[0])) for inputs in points]
        in_turn = zip(*zip(*(generation(inputs, records[1]) for inputs in points), strict=True), strict=True)
        for one, other in zip(alone, in_turn, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert records[0] == records[1]
        with enabled.run(levels) as first, enabled.run(levels) as second:
            for k, pair in enumerate(zip(*points, strict=True)):
                with pytest.raises(RunError, match="could belong to any of them"):
                    network(**pair[0])
                for run, point, outputs in zip((first, second), pair, alone, strict=True):
                    assert torch.equal(run(**point)[0], outputs[k])
        assert [first.trace.to_dict(), second.trace.to_dict()] == records[0]


def test_levels_are_taken_in_the_form_in_which_the_run_begins_early():
    """FLUX writes t / 1000, and 1 = 1000 / 1000 is also the scheduler's last timestep."""
    pipe, tiny, network = flux()
    pipe.transformer = network
    timesteps = pipe.scheduler.timesteps
    assert timesteps[-1] == 1.0
    unaware = evolve(adapter_of(network), clock="timestep")
    with torch.no_grad(), cachepolicies.enable(pipe, Uniform(every=2), adapter=unaware) as enabled:
        for t in timesteps:
            network(**tiny.inputs(1, t=float(t) / 1000))
        assert [record.index for record in enabled.trace.records] == [0, 1, 2, 3, 4, 5]
    clock = PipelineClock(lambda: pipe.scheduler)
    pipe.scheduler.set_begin_index(0)
    run = clock.begin(torch.tensor([1.0]), 1, None)
    assert run is not None
    assert run.given is not None
    assert run.given.values[0] == 1.0
    assert len(run.given.values) == 6


@pytest.mark.parametrize(("name", "batch"), [("flux", 2), ("flux", 3), ("sd3", 2), ("sd3", 3)])
def test_prompts_of_one_seed_decide_apart(name, batch):
    tiny = PIPELINES[name]
    pipe = tiny.build()
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    tiny.call(pipe, steps=2, batch=1)
    shape = seen[0].shape[1:]
    equal = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).expand(batch, *shape).clone()
    with cachepolicies.enable(pipe, Uniform(every=2)) as enabled:
        tiny.call(pipe, steps=6, batch=batch, latents=equal)
        assert {len(record.evaluated) for record in enabled.trace.records} == {batch}


def test_a_conditioning_that_is_gone_is_not_the_same_as_none():
    calls = []

    def model(x, t, prompt=None):
        calls.append(prompt)
        return x if prompt is None else x + prompt

    denoiser = CachedDenoiser(model, Uniform(every=2))
    x = torch.ones(1, 3)
    with denoiser.run(timesteps=(9.0, 8.0, 7.0, 6.0, 5.0)):
        denoiser(x, 9.0, torch.ones(1, 3).clone())
        with pytest.raises(RunError, match="called twice at the same x and t=9 with different conditioning"):
            denoiser(x, 9.0, None)


def test_arrays_are_conditioning_too():
    denoiser = CachedDenoiser(lambda x, t, prompt: x + float(prompt.sum()), Uniform(every=2))
    x = torch.ones(1, 3)
    with denoiser.run(timesteps=(9.0, 8.0, 7.0, 6.0, 5.0)):
        denoiser(x, 9.0, np.ones(3))
        with pytest.raises(RunError, match="different conditioning"):
            denoiser(x, 9.0, np.zeros(3))


class InPlace(nn.Module):
    """A network whose blocks write into what they are given."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states):
            return hidden_states.add_(self.linear(hidden_states))

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x, t):
        hidden = x.clone()
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


@pytest.mark.parametrize("inference", [False, True])
def test_blocks_that_work_in_place_are_refused(inference):
    denoiser = CachedDenoiser(InPlace().requires_grad_(False), Scripted(), site="blocks")
    message = "change the stream 'hidden_states' in place"
    with torch.inference_mode(inference), pytest.raises(InputError, match=message):
        denoiser(torch.ones(1, 4), 9.0)


def test_a_controlnet_beside_a_u_net_goes_into_its_own_shapes():
    tiny = TINY["UNet2DConditionModel"]
    model, now = tiny.build(), tiny.inputs(1)
    with torch.no_grad():
        shapes = [(1, 8, 8, 9), (1, 8, 8, 9), (1, 8, 4, 5), (1, 16, 4, 5)]  # first convolution, then the down blocks
        features = {
            "down_block_additional_residuals": tuple(0.1 * torch.ones(shape) for shape in shapes),
            "mid_block_additional_residual": 0.1 * torch.ones(1, 16, 4, 5),
        }
        first, second = now | features | {"timestep": 500}, now | features | {"timestep": 499.99}
        plain = model(**second)[0]
        assert not torch.allclose(plain, model(**now | {"timestep": 499.99})[0], atol=1e-4)
        denoiser = CachedDenoiser(model, Scripted({499.99: True}), site="blocks")
        with denoiser.run(timesteps=(500.0, 499.99)):
            denoiser(**first)
            reused = denoiser(**second)[0]
    assert denoiser.trace.records[1].evaluated == (False,)
    torch.testing.assert_close(reused, plain, atol=1e-3, rtol=1e-3)


def test_what_was_enabled_is_taken_off_even_where_the_pipeline_has_another_denoiser_now():
    pipe, _, network = flux()
    first = pipe.transformer
    with cachepolicies.enable(pipe, Uniform(every=2)):
        pipe.transformer = network
    assert not hasattr(first, "_diffusers_hook")
    assert "forward" not in first.__dict__


def test_signals_are_computed_where_a_decision_is_taken_only():
    tiny = TINY["WanTransformer3DModel"]
    model: Any = tiny.build()
    now = tiny.inputs(1)
    seen: list[int] = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: seen.append(1))
    denoiser = CachedDenoiser(model, Scripted({400.0: True}, signals=("modulated_input",)), site="blocks")
    with torch.no_grad(), denoiser.run(timesteps=(500.0, 400.0)):
        for t in (500.0, 400.0):
            for branch in ("cond", "uncond"):
                denoiser(**now | {"timestep": torch.full((1,), t)}, branch=branch)
    assert len(seen) == 2 + 2  # two decisions, two evaluations of the block itself


def panorama():
    """Several views of one step: the pipeline puts the scheduler's state of each view back before its call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, components = _sd_components()
    components |= {"scheduler": diffusers.DDIMScheduler(), "image_encoder": None}
    pipe = diffusers.StableDiffusionPanoramaPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    tiny = PIPELINES["sd"]
    given = tiny._arguments(tiny.sizes["small"], 0, 1, True)
    size = {"height": 64 * pipe.vae_scale_factor, "width": 72 * pipe.vae_scale_factor, "output_type": "latent"}
    latents = torch.randn(1, 4, 64, 72, generator=torch.Generator().manual_seed(1))
    return lambda: pipe(**{**given, **size}, latents=latents, num_inference_steps=8).images, pipe


def test_several_views_of_one_step_are_evaluated_and_it_is_said():
    draw, pipe = panorama()
    plain = draw()
    with cachepolicies.enable(pipe, "never"):
        assert torch.equal(draw(), plain)
    with cachepolicies.enable(pipe, "uniform:every=2"):
        with pytest.warns(CacheWarning, match="several views of one step") as told:
            assert torch.equal(draw(), plain)
        assert len(told) == 1
        assert torch.equal(draw(), plain)


@pytest.mark.parametrize("end", [0.6, 0.8])
def test_a_run_that_the_pipeline_ends_early_is_a_run_of_its_length(end):
    tiny = MORE["sdxl"]
    pipe = tiny.build()
    given = tiny._arguments(tiny.sizes["small"], 0, 1, True) | {"output_type": "latent", "denoising_end": end}

    def draw():
        return pipe(**given, num_inference_steps=20, generator=torch.Generator().manual_seed(0)).images

    plain = draw()
    with cachepolicies.enable(pipe, "never"):
        assert torch.equal(draw(), plain)
    with cachepolicies.enable(pipe, "uniform:every=2") as enabled:
        first = draw()
        assert (enabled.trace.calls, enabled.trace.nfe) == (20 * end, 10 * end)
        assert torch.equal(draw(), first)
