"""Runs, steps and branches that nobody names: from the pipeline's scheduler, its contexts and its conditioning."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import diffusers
import pytest
import torch
from attrs import field, frozen

import cachepolicies
from cachepolicies import Profile
from enabled_pipelines import (
    STEPS,
    ReuseSteps,
    constant_profile,
    counted,
    decisions,
    evaluated_of,
    pipeline,
    plain,
    settings,
    steps_of,
)
from enabled_pipelines import one_thread as one_thread
from scripted import Scripted
from tiny_models import TINY
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.usefixtures("one_thread")


class State:
    """What a policy remembers of a run; a weak reference to it tells how long."""


@frozen(eq=False)
class Watched(Scripted):
    """Reuses nothing, and keeps weak references to the states of its runs."""

    runs: list = field(factory=list)

    def start(self, run):
        state = State()
        self.runs.append((weakref.ref(state), run))
        return state

    def observe(self, step, decision, output, state):
        return state


# --- runs from the scheduler -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*nothing was reused:cachepolicies.CacheWarning")
def test_a_run_has_the_timesteps_of_the_scheduler_and_is_forgotten_at_the_end_of_the_pipeline():
    pipe = PIPELINES["wan"].build()
    policy = Watched()
    with cachepolicies.enable(pipe, policy) as enabled:
        for steps in (6, 9):
            PIPELINES["wan"].call(pipe, steps=steps)
            state, run = policy.runs[-1]
            assert run.timesteps == tuple(pipe.scheduler.timesteps.tolist())
            assert [r.t for r in enabled.trace.records] == [t for t in run.timesteps for _ in range(2)]
            assert state() is None, "the run outlives the pipeline's call"
    assert len(policy.runs) == 2


def test_levels_are_written_as_the_model_takes_them():
    pipe = pipeline("flux")
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled:
        PIPELINES["flux"].call(pipe, steps=STEPS)
        levels = [r.t for r in enabled.trace.records[::2]]
    assert levels == pytest.approx((pipe.scheduler.timesteps / 1000).tolist(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*nothing was reused:cachepolicies.CacheWarning")
def test_an_exception_of_the_model_leaves_nothing_behind():
    pipe = PIPELINES["wan"].build()
    policy = Watched()
    calls = []

    def fail(module, args, output):
        calls.append(module)
        if len(calls) == 5:
            raise ValueError("out of luck")

    cachepolicies.enable(pipe, policy)
    pipe.transformer.blocks[1].register_forward_hook(fail)
    with pytest.raises(ValueError, match="out of luck"):
        PIPELINES["wan"].call(pipe)
    assert policy.runs[0][0]() is None


def test_an_enabled_pipeline_that_is_dropped_is_freed():
    pipe = PIPELINES["wan"].build()
    enabled = cachepolicies.enable(pipe, "uniform", every=2)
    PIPELINES["wan"].call(pipe)
    model = weakref.ref(pipe.transformer)
    del pipe, enabled
    gc.collect()
    assert model() is None


def test_image_to_image_begins_where_its_strength_says():
    """A slice of the timesteps, with a begin index; two calls a step, without a context."""
    base = PIPELINES["flux"].build()
    pipe = diffusers.FluxImg2ImgPipeline(**base.components)
    pipe.set_progress_bar_config(disable=True)
    arguments = PIPELINES["flux"]._arguments((1, 16, 16), 0, 1, True)
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled, counted(pipe.transformer) as counts:
        pipe(
            image=torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
            strength=0.6,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
            **arguments,
        )
        trace = enabled.trace
    assert [r.t for r in trace.records] == pytest.approx(
        [t / 1000 for t in pipe.scheduler.timesteps[4:].tolist() for _ in range(2)]
    )
    assert [(r.index, r.branch) for r in trace.records] == [(i, f"branch {b}") for i in range(6) for b in (1, 2)]
    assert [r.evaluated[0] for r in trace.records[::2]] == [True, False] * 3
    assert set(counts[0]) == {trace.model_calls} == {6}


def test_video_to_video_begins_where_its_strength_says_though_the_scheduler_does_not():
    """A slice of the timesteps, without a begin index."""
    base = PIPELINES["wan"].build()
    components = {name: value for name, value in base.components.items() if name != "transformer_2"}
    pipe = diffusers.WanVideoToVideoPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    arguments = PIPELINES["wan"]._arguments((5, 32, 32), 0, 1, True)
    del arguments["num_frames"]
    latents = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled:
        pipe(video=None, latents=latents, strength=0.5, num_inference_steps=12, **arguments)
        trace = enabled.trace
    assert [r.t for r in trace.records[::2]] == pipe.scheduler.timesteps[6:].tolist()
    assert [(r.index, r.branch) for r in trace.records] == [(i, f"branch {b}") for i in range(6) for b in (1, 2)]
    assert trace.model_calls == 6


def test_two_evaluations_a_step_of_heun_are_one_step():
    """The timesteps have every level but the first twice, and x moves between the two calls."""
    pipe = PIPELINES["wan"].build()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with cachepolicies.enable(pipe, ReuseSteps(frozenset({1, 3}))) as enabled:
        PIPELINES["wan"].call(pipe, steps=5)
        trace = enabled.trace
    assert len(pipe.scheduler.timesteps) == 9
    for branch in ("cond", "uncond"):
        assert [i for i, _ in evaluated_of(trace, branch)] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [e for _, e in evaluated_of(trace, branch)] == [True, False, False, True, True, False, False, True, True]
    assert not any("restarted" in note for note in trace.notes)


SCHEDULERS = (
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_is_a_level_whatever_the_scheduler_visits(name):
    """A level that comes again is the same step, and follows the same schedule."""
    pipe = PIPELINES["sd"].build()
    pipe.scheduler = getattr(diffusers, name)()
    with cachepolicies.enable(pipe, "uniform", every=2) as enabled, counted(pipe.unet) as counts:
        PIPELINES["sd"].call(pipe, steps=STEPS)
        trace = enabled.trace
    visited = [float(t) for t in pipe.scheduler.timesteps]
    levels = sorted(set(visited), reverse=True)
    assert [r.t for r in trace.records] == visited
    assert [r.index for r in trace.records] == [levels.index(t) for t in visited]
    assert [r.evaluated[0] for r in trace.records] == [levels.index(t) % 2 == 0 for t in visited]
    assert set(counts[0]) == {trace.model_calls}


def test_bfloat16_levels_find_their_step():
    """The pipeline rounds t to the dtype of its latents, 8 bits, before it divides by 1000."""
    pipe = PIPELINES["flux"].build().to(torch.bfloat16)
    for steps in (6, 120):
        with cachepolicies.enable(pipe, "uniform", every=2) as enabled:
            arguments = PIPELINES["flux"]._arguments((1, 16, 16), 0, 1, False)
            cast = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
            pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **cast)
            trace = enabled.trace
        assert [r.index for r in trace.records] == list(range(steps))
        assert [r.evaluated[0] for r in trace.records] == [step % 2 == 0 for step in range(steps)]


def test_a_pipeline_that_does_not_pass_the_timesteps_is_followed_by_the_place_of_its_scheduler():
    """Cosmos writes sigma / (sigma + 1), say: the levels are taken as they come, and the step is the scheduler's."""
    pipe = PIPELINES["wan"].build()
    model = pipe.transformer
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    with cachepolicies.enable(pipe, "uniform", every=3) as enabled:
        for step in range(STEPS):
            level = 50.0 - step**2
            model(hidden_states=x, timestep=torch.full((1,), level), encoder_hidden_states=text)
            x = pipe.scheduler.step(0.1 * x, pipe.scheduler.timesteps[step], x, return_dict=False)[0]
        trace = enabled.trace
    assert [r.index for r in trace.records] == list(range(STEPS))
    assert [r.t for r in trace.records] == [50.0 - step**2 for step in range(STEPS)]
    assert [r.evaluated[0] for r in trace.records] == [True, False, False] * 2
    assert any("not called with the timesteps" in note for note in trace.notes)


# --- two transformers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [6, 10])
def test_two_transformers_share_a_run_and_keep_states_of_their_own(steps):
    """Half the steps each; neither is told that its run is short, nor that it begins with the switch."""
    entry, pipe = PIPELINES["wan-2.2"], PIPELINES["wan-2.2"].build()
    policy = Watched()
    with pytest.warns(cachepolicies.CacheWarning, match="nothing was reused"), cachepolicies.enable(pipe, policy):
        entry.call(pipe, steps=steps)
    timesteps = tuple(pipe.scheduler.timesteps.tolist())
    assert [run.timesteps for _, run in policy.runs] == [timesteps] * 2
    assert [run.first_t for _, run in policy.runs] == [timesteps[0], next(t for t in timesteps if t < 500)]

    with cachepolicies.enable(pipe, ReuseSteps(frozenset({1, steps // 2, steps - 1}))) as enabled:
        entry.call(pipe, steps=steps)
        trace = enabled.trace
        parts = [cachepolicies.trace(module) for module in entry.modules(pipe)]
    assert [steps_of(part) for part in parts] == [list(range(steps // 2)), list(range(steps // 2, steps))]
    assert [r.evaluated[0] for r in parts[1].records[:2]] == [True, True], "there is nothing of its own to reuse yet"
    assert [r.evaluated[0] for r in parts[1].records[-2:]] == [False, False]
    assert trace.calls == 2 * steps
    assert {r.branch for r in trace.records} == {
        f"{name} {branch}" for name in ("transformer", "transformer_2") for branch in ("cond", "uncond")
    }


def test_the_trace_of_two_transformers_is_of_one_run_though_the_last_stopped_in_the_first():
    entry, pipe = PIPELINES["wan-2.2"], PIPELINES["wan-2.2"].build()

    def stop(pipe, step, t, values):
        pipe._interrupt = step == 1
        return values

    with cachepolicies.enable(pipe, ReuseSteps(frozenset({1, 4}))) as enabled:
        entry.call(pipe, steps=6)
        assert enabled.trace.calls == 12
        entry.call(pipe, steps=6, callback_on_step_end=stop)
        assert steps_of(enabled.trace) == [0, 1]
        assert cachepolicies.trace(pipe).calls == 4


def test_profiles_by_the_name_of_the_transformer():
    entry, pipe = PIPELINES["wan-2.2"], PIPELINES["wan-2.2"].build()
    low, high = (constant_profile(pipe, pipe.transformer, alpha_x=a) for a in (1e-9, 1e9))
    profiles = {"transformer": low, "transformer_2": high}
    with cachepolicies.enable(pipe, "sencache", profile=profiles, epsilon=1.0, start_fraction=0.0):
        with pytest.warns(cachepolicies.CacheWarning, match="nothing was reused in a run of 6 calls"):
            entry.call(pipe, steps=6)
        first, second = (cachepolicies.trace(module) for module in entry.modules(pipe))
    assert [first.model_calls, second.model_calls] == [2, 6]


# --- what users of these methods have trouble with -------------------------------------------------------------------


def test_ratios_of_another_length_are_read_at_the_nearest_place():
    """Ratios of 50 steps in a run of 6: as the authors do, entries 0, 10, 20, 29, 39 and 49."""
    pipe = pipeline("wan")
    ratios = [1.0] * 50
    ratios[10] = 0.5  # only step 1 would drift
    given: dict[str, Any] = {"threshold": 0.1, "max_reuse": 9, "retention_ratio": 0.0}
    with cachepolicies.enable(pipe, "magcache", ratios=ratios, **given) as enabled:
        PIPELINES["wan"].call(pipe, steps=6)
        assert evaluated_of(enabled.trace, "cond") == [(i, i < 2) for i in range(6)]


def test_a_profile_serves_another_length_and_another_resolution_and_says_so():
    pipe = pipeline("wan")
    profile: Profile = constant_profile(pipe, pipe.transformer)
    with cachepolicies.enable(pipe, "sencache", profile=profile, epsilon=1.0) as enabled:
        PIPELINES["wan"].call(pipe, steps=8, size="large")
        trace = enabled.trace
    assert trace.model_calls < trace.calls
    assert any("calibrated at latent shape" in note and "(4, 3, 6, 8)" in note for note in trace.notes)
    assert any("calibrated with 101 steps, used with 8" in note for note in trace.notes)


@pytest.mark.filterwarnings("ignore:.*nothing was reused:cachepolicies.CacheWarning")
def test_a_sample_is_not_degraded_by_the_first_of_its_batch():
    """Sample 0 hardly moves and reuses; sample 1 moves, and is evaluated all the same."""
    model = TINY["WanTransformer3DModel"].build()
    profile = constant_profile(pipeline("wan"), model, alpha_t=0.0)
    times = (900.0, 750.0, 600.0, 450.0, 300.0, 150.0)
    moves = torch.tensor([1e-4, 1.0]).reshape(2, 1, 1, 1, 1)
    now = TINY["WanTransformer3DModel"].inputs(2, seed=3)
    shift = torch.randn(now["hidden_states"].shape, generator=torch.Generator().manual_seed(0)) * moves
    points = [
        now | {"hidden_states": now["hidden_states"] + step * shift, "timestep": torch.full((2,), t)}
        for step, t in enumerate(times)
    ]
    bare = [model(**point)[0] for point in points]
    for per_sample in (True, False):
        with (
            cachepolicies.enable(model, "sencache", profile=profile, epsilon=0.05, per_sample=per_sample) as enabled,
            enabled.run(times),
        ):
            outputs = [model(**point)[0] for point in points]
            trace = enabled.trace
        if per_sample:
            assert all(record.evaluated == (record.index in (0, 4), True) for record in trace.records)
        else:
            assert all(record.evaluated == (True,) for record in trace.records)
        for output, expected in zip(outputs, bare, strict=True):
            torch.testing.assert_close(output[1:], expected[1:], atol=1e-5, rtol=0)


def test_seeds_do_not_share_anything_from_call_to_call():
    pipe = pipeline("wan")
    with cachepolicies.enable(pipe, "sencache", **settings("wan", "sencache")) as enabled:
        first = PIPELINES["wan"].call(pipe, steps=STEPS, seed=0)
        made = decisions(enabled.trace)
        PIPELINES["wan"].call(pipe, steps=STEPS, seed=1)
        assert torch.equal(PIPELINES["wan"].call(pipe, steps=STEPS, seed=0), first)
        assert decisions(enabled.trace) == made
    assert not torch.equal(first, plain("wan"))


def test_a_generation_after_one_that_was_ended_is_another_run_of_the_same_timesteps():
    """Where a loop of one's own does not set the scheduler up again, and begins in the middle the second time."""
    pipe, tiny = PIPELINES["wan"].build(), TINY["WanTransformer3DModel"]
    pipe.transformer = tiny.build()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe.scheduler.set_timesteps(10)
    levels = pipe.scheduler.timesteps
    with cachepolicies.enable(pipe, "uniform:evaluations=3", site="output") as enabled:
        for first, expected in ((0, [0, 3, 6]), (4, [0, 2, 4])):
            for t in levels[first:]:
                pipe.transformer(**tiny.inputs(1) | {"timestep": t[None]})
            found = [k for k, record in enumerate(enabled.trace.records) if record.evaluated[0]]
            assert found == expected
            enabled.reset()
