"""Branches that nobody names: from contexts, doubled batches and conditioning; and a module by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cachepolicies
from cachepolicies import InputError, NeedsError, RunError
from enabled_pipelines import STEPS, ReuseSteps, evaluated_of, pipeline, settings
from enabled_pipelines import one_thread as one_thread
from scripted import Scripted
from tiny_models import TINY
from tiny_pipelines import PIPELINES

pytestmark = pytest.mark.usefixtures("one_thread")


# --- guidance for part of a run --------------------------------------------------------------------------------------


def test_guidance_that_stops_and_comes_back():
    """An uncond branch that was left out at the last refresh has nothing to reuse when it comes back."""
    pipe = PIPELINES["wan"].build()
    scale = {1: 1.0, 4: 4.0}  # off behind step 1, on again behind step 4

    def switch(pipe, step, t, values):
        pipe._guidance_scale = scale.get(step, pipe._guidance_scale)
        return values

    with cachepolicies.enable(pipe, ReuseSteps(frozenset({1, 3, 5, 7}))) as enabled:
        output = PIPELINES["wan"].call(pipe, steps=8, callback_on_step_end=switch)
        trace = enabled.trace
    assert evaluated_of(trace, "cond") == [(i, i % 2 == 0) for i in range(8)]
    assert evaluated_of(trace, "uncond") == [(0, True), (1, False), (5, True), (6, True), (7, False)]
    assert torch.isfinite(output).all()
    assert not any("restarted" in note for note in trace.notes)


def test_a_doubled_batch_that_is_halved_in_mid_run_restarts_where_it_is():
    """As diffusers' own callbacks for a guidance cutoff do."""
    pipe = PIPELINES["sd3"].build()

    def cut(pipe, step, t, values):
        if step == 2:
            pipe._guidance_scale = 0.0
            return {name: value[-1:] if name != "latents" else value for name, value in values.items()}
        return values

    with cachepolicies.enable(pipe, ReuseSteps(frozenset({1, 3, 5}))) as enabled:
        output = PIPELINES["sd3"].call(
            pipe,
            steps=6,
            callback_on_step_end=cut,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
        )
        trace = enabled.trace
    assert [(r.index, r.evaluated[0]) for r in trace.records] == [
        (0, True),
        (1, False),
        (2, True),
        (3, True),
        (4, True),
        (5, False),
    ]
    assert sum("restarted" in note for note in trace.notes) == 1
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("cfg", ["auto", "batched"])
@pytest.mark.parametrize("key", ["dit", "sd3", "ltx"])
def test_both_halves_of_a_doubled_batch_follow_one_decision(key, cfg):
    """Cond first or uncond first, the rows of a sample are as far apart as the batch is long."""
    pipe = pipeline(key)
    with cachepolicies.enable(pipe, "sencache", cfg=cfg, **settings(key, "sencache")) as enabled:
        PIPELINES[key].call(pipe, steps=STEPS, batch=2)
        assert {len(r.evaluated) for r in enabled.trace.records} == {2}
    with cachepolicies.enable(pipe, "sencache", cfg="separate", **settings(key, "sencache")) as enabled:
        PIPELINES[key].call(pipe, steps=STEPS, batch=2)
        assert {len(r.evaluated) for r in enabled.trace.records} == {4}


def test_a_batch_of_an_odd_size_is_not_doubled():
    pipe = pipeline("sd3")
    with (
        cachepolicies.enable(pipe, "uniform", every=2, cfg="batched"),
        pytest.raises(InputError, match=r"3 rows.*multiple of the 2 guidance rows.*cfg=\"separate\""),
    ):
        PIPELINES["sd3"].call(pipe, batch=3, guidance=False)


# --- a module by itself ----------------------------------------------------------------------------------------------

TIMES = (900.0, 750.0, 600.0, 450.0, 300.0, 150.0)
REUSE = {600.0: True, 450.0: True, 150.0: True}


def wan_inputs(step: int, seed: int = 0) -> dict:
    """The same latent whatever the seed; the text is the seed's, the same tensor at every step."""
    inputs = TINY["WanTransformer3DModel"].inputs(1, seed=40 + step, t=TIMES[step])
    return inputs | {"encoder_hidden_states": _text(seed)}


_texts: dict[int, torch.Tensor] = {}


def _text(seed: int) -> torch.Tensor:
    if seed not in _texts:
        made = TINY["WanTransformer3DModel"].inputs(1)["encoder_hidden_states"]
        _texts[seed] = torch.randn(made.shape, generator=torch.Generator().manual_seed(seed))
    return _texts[seed]


def outputs_alone(model, seed: int) -> list[torch.Tensor]:
    """What one branch gives in a run of its own."""
    with cachepolicies.enable(model, Scripted(REUSE)) as enabled, enabled.run(TIMES):
        return [model(**wan_inputs(step, seed))[0] for step in range(len(TIMES))]


ORDERS = {
    "cond first": [(1, 2)] * 6,
    "uncond first": [(2, 1)] * 6,
    "swapped on the way": [(1, 2), (2, 1), (2, 1), (1, 2), (2, 1), (1, 2)],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("branches", ["shared", "independent"])
@pytest.mark.parametrize("context", [False, True])
def test_branches_are_never_mixed_up(order, branches, context):
    """Told by their conditioning or by a context, each keeps its own residual: as in a run of its own."""
    model: Any = TINY["WanTransformer3DModel"].build()
    expected = {seed: outputs_alone(model, seed) for seed in (1, 2)}
    assert not torch.allclose(expected[1][2], expected[2][2], atol=1e-3)
    with cachepolicies.enable(model, Scripted(REUSE), branches=branches) as enabled, enabled.run(TIMES):
        for step, pair in enumerate(ORDERS[order]):
            for seed in pair:
                if context:
                    with model.cache_context(f"branch {seed}"):
                        output = model(**wan_inputs(step, seed))[0]
                else:
                    output = model(**wan_inputs(step, seed))[0]
                assert torch.equal(output, expected[seed][step])
        trace = enabled.trace
    assert len({r.branch for r in trace.records}) == 2
    assert [r.evaluated[0] for r in trace.records] == [t not in REUSE for t in TIMES for _ in range(2)]


def test_conditioning_that_varies_at_every_step_is_one_branch_with_one_call_a_step():
    model = TINY["WanTransformer3DModel"].build()
    with cachepolicies.enable(model, Scripted(REUSE)) as enabled, enabled.run(TIMES):
        for step in range(len(TIMES)):
            model(**wan_inputs(step) | {"encoder_hidden_states": _text(0) + step})
        trace = enabled.trace
    assert trace.records[-1].evaluated == (False,)
    assert trace.model_calls < trace.calls


@pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")
def test_where_the_text_of_two_branches_varies_at_every_step_all_is_evaluated():
    model = TINY["WanTransformer3DModel"].build()

    def sample():
        return [
            model(**wan_inputs(step) | {"encoder_hidden_states": _text(seed) + step})[0]
            for step in range(len(TIMES))
            for seed in (1, 2)
        ]

    expected = sample()
    with cachepolicies.enable(model, Scripted(REUSE)) as enabled, enabled.run(TIMES):
        assert all(torch.equal(one, other) for one, other in zip(sample(), expected, strict=True))
        assert enabled.trace.cache_ratio == 0


def test_a_context_gives_the_step_and_the_length_of_the_run():
    """As diffusers' Wan pipeline calls it: MagCache needs nothing else."""
    model: Any = TINY["WanTransformer3DModel"].build()
    ratios = (1.0, 0.9, 0.9, 0.9, 0.9, 0.9)
    with cachepolicies.enable(model, "magcache", ratios=ratios, threshold=0.3, max_reuse=2) as enabled:
        for _ in range(2):
            for step in range(len(TIMES)):
                for seed, name in ((1, "cond"), (2, "uncond")):
                    with model.cache_context(name, step_index=step, num_inference_steps=len(TIMES)):
                        model(**wan_inputs(step, seed))
            trace = enabled.trace
            assert [(r.index, r.branch) for r in trace.records] == [
                (i, n) for i in range(6) for n in ("cond", "uncond")
            ]
            assert [r.evaluated[0] for r in trace.records[::2]] == [True, False, False, True, False, False]


def test_without_a_scheduler_or_a_context_a_policy_that_needs_the_run_length_says_how_to_declare_it():
    model = TINY["WanTransformer3DModel"].build()
    with cachepolicies.enable(model, "uniform", every=2) as enabled:
        with pytest.raises(NeedsError, match=r"'uniform'.*needs the run length.*run\(timesteps"):
            model(**wan_inputs(0))
        with enabled.run(TIMES):
            for step in range(len(TIMES)):
                model(**wan_inputs(step))
        assert [r.evaluated[0] for r in enabled.trace.records] == [True, False] * 3


def test_a_policy_that_needs_no_run_length_finds_its_runs_from_t():
    model = TINY["WanTransformer3DModel"].build()
    with cachepolicies.enable(model, Scripted(REUSE)) as enabled:
        for _ in range(2):
            for step in range(len(TIMES)):
                model(**wan_inputs(step))
            trace = enabled.trace
            assert [r.t for r in trace.records] == list(TIMES)
            assert [r.evaluated[0] for r in trace.records] == [t not in REUSE for t in TIMES]


def test_a_declared_run_must_begin_among_its_timesteps():
    model = TINY["WanTransformer3DModel"].build()
    with (
        cachepolicies.enable(model, "uniform", every=2) as enabled,
        enabled.run([1.0, 0.5, 0.1]),
        pytest.raises(RunError, match=r"3 timesteps from 1 to 0\.1.*first call has t=900"),
    ):
        model(**wan_inputs(0))


def test_at_the_output_too_the_adapter_says_which_arguments_have_rows():
    """FLUX takes ids without a batch; samples that part have to be cut out around them."""
    tiny = TINY["FluxTransformer2DModel"]
    model, now = tiny.build(), tiny.inputs(3)
    later = now | {"hidden_states": now["hidden_states"] * 0.9, "timestep": now["timestep"] * 0.5}
    level = float(later["timestep"][0])
    with torch.no_grad(), cachepolicies.enable(model, Scripted({level: (True, False, True)}), site="output") as enabled:
        first = model(**now)[0]
        second = model(**later)[0]
        assert enabled.trace.records[1].evaluated == (False, True, False)
    assert torch.equal(second[[0, 2]], first[[0, 2]])
    torch.testing.assert_close(second[1:2], model(**tiny.rows(later, [1]))[0], atol=1e-5, rtol=1e-5)
