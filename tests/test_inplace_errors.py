"""Bad input to caching in place: what each message says, and that nothing stays behind."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from attrs import evolve
from torch import nn

import cachepolicies
from cachepolicies import CacheWarning, InputError, NeedsError, ProfileError, RunError, SettingsError
from cachepolicies.policies import Uniform
from cachepolicies.profiles.schema import ModelInfo
from enabled_pipelines import STEPS, constant_profile, decisions, pipeline, settings, steps_of
from enabled_pipelines import one_thread as one_thread
from more_pipelines import MORE
from scripted import Scripted
from tiny_models import TINY
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(error, match: str, *args, target=None, **kwargs) -> None:
    """Enabling fails with this message, and leaves no trace of itself."""
    target = PIPELINES["wan"].build() if target is None else target
    with pytest.raises(error, match=match):
        cachepolicies.enable(target, *args, **kwargs)
    with pytest.raises(RunError, match="cannot disable: caching is not enabled"):
        cachepolicies.disable(target)
    modules = [target] if isinstance(target, nn.Module) else list(target.components.values())
    for module in modules:
        if isinstance(module, nn.Module):
            assert "forward" not in vars(module)
            assert not getattr(module, "_diffusers_hook", None)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, NeedsError, r"'magcache' needs magnitude ratios \(no profile was given\)"),
        ({"ratios": (1.0, math.nan, 0.9)}, SettingsError, r"ratios must be .* finite numbers.* got nan"),
        ({"ratios": {"cond": (1.0, 0.0)}}, SettingsError, r"ratios of stream 'cond': entry 1 is 0\.0"),
        ({"ratios": (0.9, 0.9)}, SettingsError, r"entry 0 is 0\.9, expected 1: the first step has no predecessor"),
        (
            {"ratios": (1.0, 0.9), "never": (2,)},
            SettingsError,
            r"never holds 2, but the ratios have the entries 0 to 1",
        ),
        ({"ratios": (1.0, 0.9), "lookup": "level"}, NeedsError, r"lookup='level'.*there are none"),
    ],
)
def test_ratios(given, error, match):
    refused(error, match, "magcache", **given)


def test_ratios_that_do_not_fit_the_timesteps_they_are_read_on():
    pipe = PIPELINES["wan"].build()
    profile = constant_profile(pipe, pipe.transformer)
    refused(
        SettingsError,
        r"ratios: 6 entries for the profile's 101 timesteps",
        "magcache",
        target=pipe,
        profile=profile,
        ratios=(1.0,) + (0.9,) * 5,
        lookup="level",
    )


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, NeedsError, r"'teacache' lacks threshold, coefficients, signal \(no profile was given\)"),
        ({"threshold": 0.1, "signal": "modulated_input"}, NeedsError, r"lacks coefficients"),
        ({"threshold": 0.1, "signal": "modulated_input", "coefficients": (1.0, math.inf)}, SettingsError, "inf"),
        ({"threshold": 0.1, "signal": "modulated_input", "coefficients": ()}, SettingsError, r"coefficients.*\(\)"),
        ({"threshold": math.nan, "signal": "modulated_input", "coefficients": (1.0,)}, SettingsError, "nan"),
        (
            {"threshold": 0.1, "signal": "first_block", "coefficients": (1.0,)},
            NeedsError,
            r"'teacache' needs the signal first_block .*cannot supply \(it supplies: modulated_input, ",
        ),
    ],
)
def test_coefficients(given, error, match):
    refused(error, match, "teacache", **given)


def test_ratios_of_two_streams_in_turn_are_refused_when_the_run_begins():
    pipe = PIPELINES["wan"].build()
    ratios = (1.0, 1.0) + (0.99,) * (2 * STEPS - 2)
    with cachepolicies.enable(pipe, "magcache", ratios=ratios) as enabled:
        with pytest.raises(SettingsError, match=r"12 entries for 6 steps and begins with 1, 1.*ratios\[0::2\]"):
            PIPELINES["wan"].call(pipe, steps=STEPS)
        assert enabled.trace.calls == 0
        PIPELINES["wan"].call(pipe, steps=2 * STEPS)
        assert steps_of(enabled.trace) == list(range(2 * STEPS))


# --- profiles --------------------------------------------------------------------------------------------------------


def test_a_profile_of_another_model():
    pipe = PIPELINES["wan"].build()
    profile = evolve(constant_profile(pipe, pipe.transformer), model=ModelInfo("LTXVideoTransformer3DModel"))
    refused(ProfileError, r"LTXVideoTransformer3DModel.*WanTransformer3DModel", profile=profile, target=pipe)


def test_a_profile_of_another_model_for_the_second_transformer_undoes_the_first():
    pipe = PIPELINES["wan-2.2"].build()
    good = constant_profile(pipe, pipe.transformer)
    bad = evolve(good, model=ModelInfo("FluxTransformer2DModel"))
    profiles = {"transformer": good, "transformer_2": bad}
    refused(ProfileError, r"FluxTransformer2DModel.*WanTransformer3DModel", profile=profiles, target=pipe)


def test_a_profile_without_what_the_policy_reads():
    pipe = PIPELINES["wan"].build()
    bare = evolve(constant_profile(pipe, pipe.transformer), curves={})
    refused(
        NeedsError,
        r"sencache.*needs 'alpha_x', 'alpha_t', which profile 'constant'",
        "sencache",
        profile=bare,
        target=pipe,
    )
    message = r"'sencache' needs a profile with alpha_t, alpha_x, rho, and none was given\. Shipped for Wan"
    refused(NeedsError, message, "sencache", learn=False, target=pipe)


def test_a_profile_for_a_denoiser_that_is_not_there():
    pipe = PIPELINES["wan"].build()
    profiles = {"transformer_2": constant_profile(pipe, pipe.transformer)}
    refused(
        SettingsError, r"given for 'transformer_2'; the denoisers here are transformer", profile=profiles, target=pipe
    )


def test_a_profile_in_other_units_is_refused_when_the_run_begins():
    pipe = PIPELINES["flux"].build()
    profile = constant_profile(pipe, pipe.transformer)
    thousands = evolve(profile, timesteps=tuple(1000.0 * t for t in np.linspace(1.0, 0.01, 50)), curves=profile.curves)
    with (
        cachepolicies.enable(pipe, profile=thousands),
        pytest.raises(ProfileError, match=r"calibrated for t from 1000 to 10, this run begins at t=1;.*units"),
    ):
        PIPELINES["flux"].call(pipe)


# --- signals and stacks ----------------------------------------------------------------------------------------------


def test_a_signal_that_the_model_or_the_site_cannot_supply():
    given = {"threshold": 0.1, "coefficients": (1.0, 0.0), "signal": "modulated_input"}
    unet = PIPELINES["sd"].build()
    message = r"'teacache' needs the signal modulated_input.*site 'blocks' of UNet2DConditionModel.*timestep_embedding"
    refused(NeedsError, message, "teacache", target=unet, **given)
    supplied = r"\(it supplies: spatial-latent, token-grid\)"
    at_output = rf"site 'output' of WanTransformer3DModel cannot supply {supplied}; use site='blocks'"
    refused(NeedsError, at_output, "teacache", site="output", **given)
    refused(NeedsError, r"site 'proj_out' of WanTransformer3DModel cannot supply", "teacache", site="proj_out", **given)


class TwoStacks(nn.Module):
    """A model that nobody has written an adapter for."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(4, 4)])
        self.up = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, hidden_states, timestep):
        return self.up[0](self.down[0](hidden_states))


def test_a_module_without_a_known_stack():
    model = TwoStacks()
    message = r"block stack of TwoStacks is: there is no adapter.*2 lists of modules \(down, up\).*about 15 lines"
    refused(NeedsError, message, "never", target=model)
    with cachepolicies.enable(model, Scripted({0.5: True}), site="output"):
        first = model(torch.ones(2, 4), 1.0)
        assert torch.equal(model(torch.zeros(2, 4), 0.5), first)


def test_a_site_that_is_not_there():
    refused(
        SettingsError, r"'blocks\.7\.attn1'.*WanTransformer3DModel\.blocks has 0, 1, 2", "never", site="blocks.7.attn1"
    )
    refused(SettingsError, "site is ''", "never", site="")


@pytest.mark.parametrize("make", ["script", "trace", "fx"])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models_in_one_graph_are_refused(make):
    model = TwoStacks()
    if make == "fx":
        graph: nn.Module = torch.fx.symbolic_trace(model)
    elif make == "trace":
        graph = torch.jit.trace(model, (torch.ones(2, 4), torch.ones(())))
    else:
        graph = torch.jit.script(model)
    with pytest.raises(SettingsError, match=r"its blocks run inside one graph.*torch\.compile"):
        cachepolicies.enable(graph, "never")


# --- targets ---------------------------------------------------------------------------------------------------------


def test_enabling_twice_names_what_is_enabled():
    pipe = pipeline("wan")
    with cachepolicies.enable(pipe, "uniform", every=2):
        for target in (pipe, pipe.transformer):
            with pytest.raises(
                RunError, match=r"already: Uniform\(every=2, evaluations=None\) at site 'blocks'.*disable"
            ):
                cachepolicies.enable(target, "never")
        PIPELINES["wan"].call(pipe)
        assert cachepolicies.trace(pipe).policy == "uniform"
    with cachepolicies.enable(pipe, "never"):
        pass


def test_nothing_is_enabled():
    pipe = PIPELINES["wan-2.2"].build()
    for function, what in ((cachepolicies.disable, "disable"), (cachepolicies.trace, "trace")):
        with pytest.raises(RunError, match=rf"cannot {what}.*transformer, transformer_2 of this WanPipeline"):
            function(pipe)
    with cachepolicies.enable(pipe, "never") as enabled:
        enabled.disable()
        with pytest.raises(RunError, match="cannot disable"):
            enabled.disable()
        cachepolicies.enable(pipe, "never")  # what the context will disable


def test_diffusers_own_cache_is_enabled():
    pipe = PIPELINES["wan"].build()
    pipe.transformer.enable_cache(
        diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        )
    )
    message = r"diffusers' own cache is enabled on transformer \(PyramidAttentionBroadcastConfig\).*disable_cache"
    with pytest.raises(RunError, match=message):
        cachepolicies.enable(pipe, "never")
    pipe.transformer.disable_cache()
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled:
        PIPELINES["wan"].call(pipe)
        assert enabled.trace.calls == 2 * STEPS


def test_targets_that_are_no_denoisers():
    with pytest.raises(SettingsError, match=r"target is a function; give a torch\.nn\.Module or a diffusers pipeline"):
        cachepolicies.enable(lambda x, t: x, "never")

    class Decoder:
        def __init__(self):
            self.components = {"vae": nn.Linear(1, 1)}

    with pytest.raises(
        SettingsError,
        match=r"Decoder has no component named transformer, transformer_2, .*unet.*vae",
    ):
        cachepolicies.enable(Decoder(), "never")


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"cfg": "both"}, r"cfg.*'both'"),
        ({"branches": "mine"}, r"branches.*'mine'"),
        ({"per_sample": "yes"}, r"per_sample.*'yes'"),
        ({"audit": 1.5}, r"audit.*1\.5"),
        ({"batched": ("prompt",)}, r"batched names 'prompt', but the model's arguments are hidden_states"),
        ({"x_name": "latent"}, r"x_name names 'latent'"),
        ({"adapter": "wan"}, r"adapter is a str"),
        ({"thresold": 1.0}, r"thresold"),
    ],
)
def test_options(option, match):
    with pytest.raises(SettingsError, match=match):
        cachepolicies.enable(pipeline("wan"), "never", **option)
    with pytest.raises(RunError, match="cannot trace"):
        cachepolicies.trace(pipeline("wan"))


def test_a_forward_that_was_replaced_since_is_not_put_out_of_place():
    model = TINY["WanTransformer3DModel"].build()
    cachepolicies.enable(model, "never")
    ours = model.forward
    model.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(RunError, match=r"forward of WanTransformer3DModel was replaced after.*undo that first"):
        cachepolicies.disable(model)
    model.forward = ours
    cachepolicies.disable(model)
    assert "forward" not in vars(model)


# --- what changes between calls --------------------------------------------------------------------------------------


def test_a_scheduler_of_another_family_is_refused():
    pipe = PIPELINES["wan"].build()
    with cachepolicies.enable(pipe, "sencache", **settings("wan", "sencache")) as enabled:
        expected = PIPELINES["wan"].call(pipe)
        made = decisions(enabled.trace)
        own = pipe.scheduler
        pipe.scheduler = diffusers.UniPCMultistepScheduler()
        with pytest.raises(
            ProfileError, match=r"'constant'.*family 'flow', scheduler 'UniPCMultistepScheduler' has 'vp'"
        ):
            PIPELINES["wan"].call(pipe)
        pipe.scheduler = own
        assert torch.equal(PIPELINES["wan"].call(pipe), expected)
        assert decisions(enabled.trace) == made


def test_a_scheduler_of_the_same_family_is_a_run_of_its_own():
    def other():
        return diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        )

    pipe, fresh = PIPELINES["wan"].build(), PIPELINES["wan"].build()
    fresh.scheduler = other()
    with cachepolicies.enable(pipe, "sencache", **settings("wan", "sencache")) as enabled:
        PIPELINES["wan"].call(pipe)
        pipe.scheduler = other()
        output = PIPELINES["wan"].call(pipe, steps=8)
        trace = enabled.trace
    assert [r.t for r in trace.records[::2]] == pipe.scheduler.timesteps.tolist()
    assert steps_of(trace) == list(range(8))
    assert any("'UniPCMultistepScheduler'" in note for note in trace.notes)
    with cachepolicies.enable(fresh, "sencache", **settings("wan", "sencache")):
        assert torch.equal(PIPELINES["wan"].call(fresh, steps=8), output)


def with_ddim():
    pipe = PIPELINES["dit"].build()
    assert isinstance(pipe.scheduler, diffusers.DDIMScheduler)
    config = pipe.scheduler.config
    return pipe, pipe.scheduler, config, diffusers.UniPCMultistepScheduler.from_config(config)  # the last in log-SNR


def test_a_scheduler_with_another_time_is_refused_where_the_substitute_follows_it():
    pipe, own, _, other = with_ddim()
    for substitute, refused in (("linear", True), ("linear:time=t", False), ("hold", False)):
        with cachepolicies.enable(pipe, "uniform:evaluations=3", substitute=substitute) as enabled:
            expected = PIPELINES["dit"].call(pipe, steps=6)
            pipe.scheduler = other
            if refused:
                with pytest.raises(RunError, match=r"is now a UniPC.*enabled it had a DDIM.*'linear' follows"):
                    PIPELINES["dit"].call(pipe, steps=6)
                with pytest.raises(RunError, match="is now a UniPC"), enabled.run([900.0, 500.0, 100.0]):
                    pass
            else:
                PIPELINES["dit"].call(pipe, steps=6)
            pipe.scheduler = own
            assert torch.equal(PIPELINES["dit"].call(pipe, steps=6), expected)
    pipe.scheduler = other
    with cachepolicies.enable(pipe, "uniform:evaluations=3", substitute="linear"):
        PIPELINES["dit"].call(pipe, steps=6)


def test_another_scheduler_with_the_same_time_is_served():
    """Made anew with the same settings, or of another class that interpolates its sigmas a little otherwise."""
    pipe, _, config, _ = with_ddim()
    with cachepolicies.enable(pipe, "uniform:evaluations=3", substitute="linear"):
        expected = PIPELINES["dit"].call(pipe, steps=6)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
        assert torch.equal(PIPELINES["dit"].call(pipe, steps=6), expected)
        for settings_of_euler in ({}, {"use_karras_sigmas": True}):
            pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(config, **settings_of_euler)
            PIPELINES["dit"].call(pipe, steps=50)


def test_a_scheduler_whose_time_is_not_known_is_refused_where_the_substitute_needs_it():
    pipe, _, config, _ = with_ddim()
    with cachepolicies.enable(pipe, "uniform:evaluations=3", substitute="linear:time=sigma"):
        pipe.scheduler = diffusers.PNDMScheduler.from_config(config)
        with pytest.raises(RunError, match=r"is now a PNDM.*enabled it had a DDIM") as refused:
            PIPELINES["dit"].call(pipe, steps=6)
    assert isinstance(refused.value.__cause__, NeedsError)


def test_a_model_moved_to_another_dtype_between_calls():
    pipe, fresh = PIPELINES["wan"].build(), PIPELINES["wan"].build().to(torch.bfloat16)
    with cachepolicies.enable(pipe, "sencache", **settings("wan", "sencache")) as enabled:
        PIPELINES["wan"].call(pipe)
        pipe.to(torch.bfloat16)
        output = PIPELINES["wan"].call(pipe)
        assert steps_of(enabled.trace) == list(range(STEPS))
        assert enabled.trace.model_calls < enabled.trace.calls
    with cachepolicies.enable(fresh, "sencache", **settings("wan", "sencache")):
        assert torch.equal(PIPELINES["wan"].call(fresh), output)


def test_a_model_moved_to_another_dtype_in_mid_run_restarts_there():
    tiny = TINY["WanTransformer3DModel"]
    model: Any = tiny.build()
    times = [900.0, 700.0, 500.0, 300.0, 100.0]
    with cachepolicies.enable(model, Scripted(dict.fromkeys(times[1:], True))) as enabled:
        with enabled.run(times):
            for step, t in enumerate(times):
                inputs = tiny.inputs(1, t=t)
                if step == 2:
                    model.double()
                if step >= 2:
                    inputs = {name: value.double() if name != "timestep" else value for name, value in inputs.items()}
                with model.cache_context("cond"):
                    output = model(**inputs)[0]
        trace = enabled.trace
    assert output.dtype == torch.float64
    assert [r.evaluated[0] for r in trace.records] == [True, False, True, False, False]
    assert trace.records[2].reason == ("shape, dtype or device changed",)
    assert any("the run restarted at call 2" in note for note in trace.notes)


# --- warnings that are errors ----------------------------------------------------------------------------------------


def test_an_error_in_a_run_is_not_hidden_by_what_is_to_be_said_of_the_run():
    """Tests often turn warnings into errors; a run that failed has nothing to answer for."""
    model = TINY["WanTransformer3DModel"].build()

    def fail():
        for step, t in enumerate((900.0, 700.0)):
            model(**TINY["WanTransformer3DModel"].inputs(1, seed=step, t=t))
        raise ZeroDivisionError

    with cachepolicies.enable(model, Scripted()) as enabled:  # noqa: SIM117
        with pytest.raises(ZeroDivisionError), enabled.run([900.0, 700.0, 500.0, 300.0, 100.0]):
            fail()
    with pytest.raises(ZeroDivisionError), cachepolicies.enable(model, Scripted()):
        fail()
    assert "forward" not in vars(model)


@pytest.mark.parametrize("failing", [False, True])
def test_a_declared_run_stays_declared_until_the_generation_is_over(failing):
    """A call that failed may be tried again in it; at its end the pipeline is followed again."""
    pipe = PIPELINES["wan"].build()
    entry, first = PIPELINES["wan"], TINY["WanTransformer3DModel"].inputs(1, t=900.0)
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled:
        entry.call(pipe, steps=6)
        expected, levels = decisions(enabled.trace), pipe.scheduler.timesteps.tolist()
        with enabled.run(levels):
            if failing:
                with pytest.raises(InputError, match="t is nan"):
                    pipe.transformer(**first | {"timestep": torch.full((1,), math.nan)})
            entry.call(pipe, steps=6)
            assert decisions(enabled.trace) == expected
            entry.call(pipe, steps=8)
            assert steps_of(enabled.trace) == list(range(8))
            assert [r.evaluated[0] for r in enabled.trace.records[::2]] == [True, False] * 4


def test_a_warning_at_the_end_of_a_run_does_not_keep_the_cache_enabled():
    pipe = PIPELINES["wan-2.2"].build()
    cachepolicies.enable(pipe, Scripted())

    def leave(pipe, step, t, values):
        if step == 4:
            raise ZeroDivisionError
        return values

    with pytest.raises(ZeroDivisionError):
        PIPELINES["wan-2.2"].call(pipe, callback_on_step_end=leave)
    with pytest.raises(CacheWarning, match="nothing was reused in a run of 6 calls"):
        cachepolicies.disable(pipe)
    for module in (pipe.transformer, pipe.transformer_2):
        assert not {"forward", "_diffusers_hook"} & set(vars(module))


def test_a_part_of_a_denoiser_is_refused_at_set_up():
    pipe = PIPELINES["wan"].build()
    part = pipe.transformer.blocks[0].attn1
    refused(
        SettingsError,
        r"takes no noise level \(hidden_states, encoder_hidden_states",
        "never",
        target=part,
        site="output",
    )


def test_denoising_components_that_are_not_cached_are_named():
    tiny = MORE["sd-controlnet"]
    pipe = tiny.build()
    with cachepolicies.enable(pipe, Uniform(every=2)) as enabled:
        tiny.call(pipe, steps=6)
        assert enabled.left_alone == {"controlnet": "ControlNetModel"}
        assert "left alone: controlnet, a ControlNetModel" in repr(enabled)
        assert any("controlnet, a ControlNetModel, is left alone" in note for note in enabled.trace.notes)
    plain = TINY["WanTransformer3DModel"].build()
    assert cachepolicies.enable(plain, Uniform(every=2)).left_alone == {}


class Pipe:
    """What a pipeline is to the cache: components and a scheduler."""

    def __init__(self, **components: Any) -> None:
        self.components, self.scheduler = components, components["scheduler"]


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_a_denoiser_of_another_name_is_found_where_it_is_the_only_one(name):
    denoiser, scheduler = TINY["WanTransformer3DModel"].build(), diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = Pipe(text=nn.Linear(2, 2), scheduler=scheduler, **{name: denoiser})
    with cachepolicies.enable(pipe, Uniform(every=2)) as enabled:
        assert [binding.name for binding in enabled.bindings] == [name]
    other = TINY["DiTTransformer2DModel"].build()
    both = Pipe(**pipe.components, other=other)
    with pytest.raises(SettingsError, match="has no component named"):
        cachepolicies.enable(both, Uniform(every=2))
