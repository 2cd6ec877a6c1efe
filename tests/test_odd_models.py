"""Models and samplers that do what few do: write on their input, swallow exceptions, keep a memory, add noise."""

from __future__ import annotations

import gc
import itertools
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import nn

import cachepolicies
from cachepolicies import CachedDenoiser, CacheWarning, InputError, NeedsError, SettingsError
from cachepolicies.adapters import adapter_of
from cachepolicies.base.signature import RowIndex, Signature
from cachepolicies.base.sources import is_memory, memory_of, returns_tuple
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.policies import Uniform
from cachepolicies.registry.load import adapters
from scripted import Scripted
from tiny_models import TINY

TIMES = tuple(1000.0 - 100 * k for k in range(10))


class Parting(Scripted):
    """Reuses every second row, the other ones at the next step."""

    def decide(self, step, state):
        whole = super().decide(step, state)
        place = round((1000 - step.t) / 100)
        reuse = tuple(place > 0 and (place + d) % 2 == 0 for d in range(step.run.decisions))
        return type(whole)(reuse, whole.reason)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = nn.Linear(4, 4)

    def forward(self, hidden_states):
        return hidden_states + torch.tanh(self.inner(hidden_states))


class Network(nn.Module):
    """Falls back to its own formula where a block fails, as some do to another kernel."""

    def __init__(self, caught: type[BaseException] | None = None, dirty: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks: Any = nn.ModuleList([Block(), Block()])
        self.caught, self.dirty, self.fell = caught, dirty, 0
        self.requires_grad_(False)

    def forward(self, x, t):
        if self.dirty:
            x.mul_(0.5)
        else:
            x = x * 0.5
        h = x + t / 1000
        for block in self.blocks:
            if self.caught is None:
                h = block(h)
                continue
            try:
                h = block(h)
            except self.caught:
                self.fell += 1
                h = h + torch.tanh(nn.functional.linear(h, block.inner.weight, block.inner.bias))
        return h


def walked(network: nn.Module, policy: Any, *, site: str, rows: int = 3, substitute: str = "hold") -> Any:
    denoiser = CachedDenoiser(network, policy, site=site, substitute=substitute)
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    outputs = []
    with denoiser.run(timesteps=TIMES) as run:
        for t in TIMES:
            outputs.append(denoiser(x.clone(), t))
            x = x - 0.1 * outputs[-1]
    return outputs, run.trace


@pytest.mark.parametrize("caught", [Exception, BaseException, RuntimeError])
def test_a_model_that_swallows_exceptions_loses_no_record(caught):
    (expected, told), (found, same) = (walked(Network(each), Parting(), site="blocks") for each in (None, caught))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert told.to_dict() == same.to_dict()


@pytest.mark.parametrize("site", ["output", "blocks"])
@pytest.mark.parametrize("policy", [Parting(), Uniform(every=3)])
@pytest.mark.parametrize("substitute", ["hold", "linear:time=t"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_model_that_writes_on_its_input_changes_nothing(site, policy, substitute, inference):
    with torch.inference_mode(inference):
        (expected, told), (found, same) = (
            walked(Network(dirty=dirty), policy, site=site, substitute=substitute) for dirty in (False, True)
        )
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert told.to_dict() == same.to_dict()


@pytest.mark.parametrize("site", ["output", "blocks"])
@pytest.mark.parametrize("substitute", ["hold", "linear:time=t"])
def test_inference_mode_and_no_grad_may_alternate(site, substitute):
    denoiser = CachedDenoiser(Network(), Parting(), site=site, substitute=substitute)
    plain = CachedDenoiser(Network(), Parting(), site=site, substitute=substitute)
    x = torch.randn(3, 4)
    with denoiser.run(timesteps=TIMES), plain.run(timesteps=TIMES):
        for k, t in enumerate(TIMES):
            with torch.no_grad():
                expected = plain(x.clone(), t)
            with torch.inference_mode() if k % 2 == 0 else torch.no_grad():
                assert torch.equal(denoiser(x.clone(), t), expected)


# --- rows inside of arguments ----------------------------------------------------------------------------------------


def nested(x, t, extra):
    def total(value: Any) -> Any:
        if isinstance(value, dict):
            return sum(total(item) for item in value.values())
        if isinstance(value, (list, tuple)):
            return sum(total(item) for item in value)
        return value if isinstance(value, torch.Tensor) else 0

    return x * 0.9 + total(extra)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: {"a": v},
        lambda v: [v, v],
        lambda v: (v,),
        lambda v: {"a": [{"b": (v, "text", None, 3)}]},
        lambda v: [[v], {"a": v}],
    ],
)
def test_rows_are_found_however_deep_they_are(wrap):
    own = torch.randn(3, 1, generator=torch.Generator().manual_seed(2))
    outputs = []
    denoiser = CachedDenoiser(nested, Parting())
    with denoiser.run(timesteps=TIMES) as run:
        for t in TIMES:
            outputs.append(denoiser(torch.full((3, 4), t), t, wrap(own)))
    for output, record, t in zip(outputs, run.trace.records, TIMES, strict=True):
        expected = nested(torch.full((3, 4), t), t, wrap(own))
        for row in (row for row in range(3) if record.evaluated[row]):
            torch.testing.assert_close(output[row], expected[row])


def test_rows_that_cannot_be_taken_out_are_refused():
    denoiser = CachedDenoiser(lambda x, t, extra: x + extra.own, Parting(), per_sample=True)
    with denoiser.run(timesteps=TIMES):  # noqa: SIM117
        with pytest.raises(InputError, match=r"SimpleNamespace that holds.*per_sample=False"):
            denoiser(torch.ones(3, 4), TIMES[0], SimpleNamespace(own=torch.ones(3, 1)))
    one = CachedDenoiser(lambda x, t, extra: x + extra.own, Uniform(every=2), per_sample=False)
    with one.run(timesteps=TIMES) as run:
        for t in TIMES:
            one(torch.ones(3, 4), t, SimpleNamespace(own=torch.ones(3, 1)))
    assert run.trace.nfe == 5


@pytest.mark.parametrize(
    "name", [name for name in TINY if name in adapters() and adapters().create(name).rows is not None]
)
def test_an_adapters_class_has_nested_rows_cut_too(name):
    """As the image prompts of FLUX's IP-Adapter, in ``joint_attention_kwargs``; positions are no rows."""
    tiny = TINY[name]
    network = tiny.build()
    signature = Signature.of(network, rows=adapter_of(network).rows)
    own, shared = torch.arange(6.0).reshape(3, 2), torch.ones(1, 2)
    given = {"joint_attention_kwargs": {"a": [own, {"b": (own, shared)}], "scale": 1.0}, "rope": (own, own)}
    _, cut = signature.slice((), given, 3, RowIndex.of([2, 0], own.device))
    inner = cut["joint_attention_kwargs"]
    for found in (inner["a"][0], inner["a"][1]["b"][0]):
        assert torch.equal(found, own[[2, 0]])
    assert inner["a"][1]["b"][1] is shared
    assert inner["scale"] == 1.0
    assert cut["rope"][0] is own
    with pytest.raises(InputError, match=r"multiple of the batch of 3 rows.*per_sample=False"):
        signature.check_rows((), {"attention_kwargs": {"masks": torch.ones(6, 2)}}, 3)


# --- what is refused, and what is evaluated --------------------------------------------------------------------------


class TwoStreams(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states):
        return hidden_states, encoder_hidden_states


class Nested(nn.Module):
    def forward(self, hidden_states):
        def pair():
            return hidden_states, hidden_states

        return pair()[0]


def test_blocks_that_return_two_streams_are_refused_at_set_up():
    assert returns_tuple(TwoStreams)
    assert not returns_tuple(Nested)
    assert not returns_tuple(Block)
    network = Network()
    network.blocks = nn.ModuleList([TwoStreams(), TwoStreams()])
    with pytest.raises(NeedsError, match="TwoStreams, return a tuple"):
        cachepolicies.enable(network, Uniform(every=2))
    assert cachepolicies.enable(network, Uniform(every=2), site="output").policy.reuses


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("kv_cache", True),
        ("past_key_values", True),
        ("k_cache", True),
        ("cache_v", True),
        ("value_cache", True),
        ("memory", True),
        ("rope_cache", False),
        ("key", False),
        ("gradient_checkpointing", False),
    ],
)
def test_names_of_memories(name, is_one):
    assert is_memory(name) is is_one


class Assigns(Block):
    def forward(self, hidden_states):
        self.k_cache = hidden_states
        return hidden_states


class Writes(Block):
    memory: Any

    def forward(self, hidden_states):
        self.memory[0].copy_(hidden_states)
        return hidden_states


class Appends(Block):
    past: Any

    def forward(self, hidden_states):
        self.past.append(hidden_states)
        return hidden_states


@pytest.mark.parametrize("kind", [Assigns, Writes, Appends])
def test_a_network_that_keeps_keys_and_values_is_refused_at_set_up(kind):
    network = Network()
    network.blocks = nn.ModuleList([kind(), kind()])
    assert memory_of(network) is not None
    for site in ("output", "blocks"):
        with pytest.raises(SettingsError, match=f"keeps keys or values from call to call .{kind.__name__}"):
            CachedDenoiser(network, Uniform(every=2), site=site)
    CachedDenoiser(network, "never")


@pytest.mark.parametrize("name", ["kv_cache", "past_key_values"])
@pytest.mark.parametrize("in_place", [False, True])
def test_calls_that_come_with_a_memory_are_evaluated(name, in_place):
    class Remembering(Network):
        def forward(self, x, t, **kwargs):
            memory = kwargs[name]
            memory.append(float(t))
            return None if t == 0 else super().forward(x, t)

    network: Any = Remembering()
    memory: list[float] = []
    times = (*TIMES, 0.0)
    x = torch.ones(2, 4)
    cached: Any = (cachepolicies.enable if in_place else CachedDenoiser)(network, Uniform(every=2), site="output")
    call = network if in_place else cached

    def sample() -> Any:
        with cached.run(times) as run:
            return [call(x, t, **{name: memory}) for t in times], run

    with pytest.warns(CacheWarning, match="come with a memory of keys and values are evaluated"):
        outputs, run = sample()
    assert memory == list(times)
    assert outputs[-1] is None
    assert run.trace.nfe == len(times)
    assert {record.reason[0] for record in run.trace.records} == {EngineReason.WRITES_MEMORY}


# --- noise added before a step ---------------------------------------------------------------------------------------


def karras(steps: int) -> torch.Tensor:
    ramp = torch.linspace(0, 1, steps)
    return torch.cat([(80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, torch.zeros(1)])


def heun(denoiser, sigmas, churn, second_order):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator) * sigmas[0]
    for sigma, following in itertools.pairwise(sigmas):
        raised = sigma * (1 + min(churn / (len(sigmas) - 1), 2**0.5 - 1))
        x = x + torch.randn(x.shape, generator=generator) * (raised**2 - sigma**2).clamp_min(0).sqrt()
        slope = (x - denoiser(x, raised.expand(2))) / raised
        ahead = x + slope * (following - raised)
        if following > 0 and second_order:
            slope = (slope + (ahead - denoiser(ahead, following.expand(2))) / following) / 2
        x = x + slope * (following - raised)
    return x


def to_data(x, sigma):
    return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("churn", [0, 1, 5, 40])
@pytest.mark.parametrize("steps", [10, 18, 40])
@pytest.mark.parametrize("second_order", [False, True])
def test_a_sampler_that_adds_noise_before_its_steps_is_one_run(churn, steps, second_order):
    sigmas = karras(steps)
    never = CachedDenoiser(to_data, "never")
    with never.run(timesteps=sigmas[:-1]):
        assert torch.equal(heun(never, sigmas, churn, second_order), heun(to_data, sigmas, churn, second_order))
    cached = CachedDenoiser(to_data, Uniform(every=2))
    with cached.run(timesteps=sigmas[:-1]) as run:
        heun(cached, sigmas, churn, second_order)
    # a level between two steps belongs to the earlier: without a second call a step, one may be counted twice
    assert run.trace.nfe / run.trace.calls < (0.6 if second_order else 0.7)
    assert not any("restarted" in note for note in run.trace.notes)


def test_a_return_to_an_earlier_step_begins_anew():
    denoiser = CachedDenoiser(lambda x, t: x * 0.9, Uniform(every=2))
    with denoiser.run(timesteps=TIMES) as run:
        for t in (1000.0, 900.0, 800.0, 900.0, 800.0):
            denoiser(torch.ones(1, 4), t)
    assert any("t went back from 800 to 900" in note for note in run.trace.notes)


# --- faults that no test saw -----------------------------------------------------------------------------------------

FEW = (1000.0, 800.0, 600.0, 400.0, 200.0)


@pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")
@pytest.mark.parametrize(
    ("levels", "steps"),
    [
        ((1000.0, 810.0, 800.0, 610.0, 600.0), [0, 0, 1, 1, 2]),
        ((1000.0, 999.0, 801.0, 800.0, 201.0), [0, 0, 0, 1, 3]),
        ((1000.0, 601.0, 599.0, 200.0, 100.0), [0, 1, 2, 4, 4]),
    ],
)
def test_a_level_between_two_timesteps_belongs_to_the_earlier_however_near_the_later(levels, steps):
    denoiser = CachedDenoiser(lambda x, t: 0.5 * x, Uniform(every=2))
    with denoiser.run(timesteps=FEW) as run:
        for t in levels:
            denoiser(torch.ones(1, 4), t)
    assert [record.index for record in run.trace.records] == steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("levels", [FEW, (1000.0, 790.0, 613.0, 400.0, 200.0), (977.0, 901.0, 333.0, 332.0, 7.0)])
def test_an_extrapolation_of_half_precision_outputs_is_computed_in_float32(dtype, levels):
    seen = []

    def model(x, t):
        seen.append(torch.randn(2, 64, generator=torch.Generator().manual_seed(int(t))).to(dtype))
        return seen[-1].clone()

    denoiser = CachedDenoiser(model, "schedule:refreshes=(0,1,3,4)", substitute="linear:time=t,guard=None")
    with denoiser.run(timesteps=levels):
        outputs = [denoiser(torch.ones(2, 64, dtype=dtype), t) for t in levels]
    newer, older, t = levels[1], levels[0], levels[2]
    expected = seen[1].float() * ((t - older) / (newer - older)) + seen[0].float() * ((t - newer) / (older - newer))
    assert torch.equal(outputs[2], expected.to(dtype))


@pytest.mark.parametrize("gap", [27.3, 13.7, 19.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rounded_t_is_the_declared_timestep(gap, dtype):
    levels = torch.tensor([1000.0 - gap * k for k in range(36)])
    denoiser = CachedDenoiser(lambda x, t: 0.5 * x, Uniform(every=2))
    with denoiser.run(timesteps=levels.tolist()) as run:
        for t in levels:
            denoiser(torch.ones(1, 4, dtype=dtype), t.to(dtype))
    assert [record.index for record in run.trace.records] == list(range(36))


@pytest.mark.parametrize("site", ["output", "blocks"])
def test_a_call_that_is_tried_again_after_an_error_begins_anew(site):
    network, failing = Network(), [False]

    def fail(module, args):
        if failing[0]:
            failing[0] = False
            raise RuntimeError("out of memory")

    network.register_forward_pre_hook(fail)
    denoiser = CachedDenoiser(network, Scripted({800.0: True, 400.0: True}), site=site)
    x = torch.ones(1, 4)
    denoiser(x, 1000.0)
    denoiser(x, 800.0)
    failing[0] = True
    with pytest.raises(RuntimeError, match="out of memory"):
        denoiser(x, 600.0)
    denoiser(x, 600.0)
    denoiser(x, 400.0)
    assert [(r.t, r.evaluated[0]) for r in denoiser.trace.records] == [(600.0, True), (400.0, False)]


# --- several processes, and solvers that control their error ---------------------------------------------------------


class Ranks(SimpleNamespace):
    """What diffusers keeps of ``enable_parallelism``."""


def parallel(ulysses: int, ring: int = 1) -> Ranks:
    return Ranks(context_parallel_config=SimpleNamespace(ulysses_degree=ulysses, ring_degree=ring))


@pytest.mark.parametrize(("config", "ranks"), [(parallel(2), 2), (parallel(1, 4), 4), (parallel(2, 2), 4)])
def test_context_parallelism_is_refused_in_either_order(config, ranks):
    network: Any = Network()
    network._parallel_config = config
    for make in (CachedDenoiser, cachepolicies.enable):
        for site in ("output", "blocks"):
            with pytest.raises(SettingsError, match=f"context parallelism over {ranks} processes"):
                make(network, Uniform(every=2), site=site)
    CachedDenoiser(network, "never")(torch.ones(1, 4), 1.0)
    later: Any = Network()
    with cachepolicies.enable(later, Uniform(every=2)) as enabled, enabled.run(TIMES):
        later._parallel_config = config
        with pytest.raises(cachepolicies.RunError, match=f"context parallelism over {ranks} processes"):
            later(torch.ones(1, 4), TIMES[0])


@pytest.mark.parametrize("config", [None, parallel(1), Ranks(context_parallel_config=None), Ranks()])
def test_one_process_is_not_parallel(config):
    network: Any = Network()
    network._parallel_config = config
    CachedDenoiser(network, Uniform(every=2))


@pytest.mark.parametrize("method", ["RK45", "RK23", "DOP853"])
@pytest.mark.parametrize("declared", [False, True])
def test_a_solver_that_rejects_steps_is_evaluated_from_there_on(method, declared):
    def model(x, t):
        return -3 * x + 5 * torch.cos(torch.as_tensor(t / 100.0)) * (1 + x**2).sqrt()

    def solved(denoiser: Any) -> Any:
        def slope(t: float, y: Any) -> Any:
            return -denoiser(torch.tensor(y).reshape(1, 8), float(t)).reshape(-1).numpy() / 100

        return scipy.integrate.solve_ivp(
            slope, (1000.0, 0.0), np.linspace(-1, 1, 8), method=method, rtol=1e-3, atol=1e-3
        ).y[:, -1]

    plain = solved(model)
    never = CachedDenoiser(model, "never")
    assert np.array_equal(solved(never), plain)
    assert not never.trace.notes

    levels = tuple(np.linspace(1000, 0, 21).tolist())
    cached = CachedDenoiser(model, Uniform(every=2) if declared else Scripted({750.0: True}))

    def with_cache() -> Any:
        if not declared:
            return solved(cached)
        with cached.run(timesteps=levels):
            return solved(cached)

    if not declared:  # nothing was reused, and nothing is said
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert np.array_equal(with_cache(), plain)
    else:
        with pytest.warns(CacheWarning, match="a solver that controls its error has to see the model as it is") as said:
            with_cache()
        assert len(said) == 1
        reasons = [record.reason[0] for record in cached.trace.records]
        first = reasons.index(EngineReason.STEPS_REJECTED)
        assert set(reasons[first:]) == {EngineReason.STEPS_REJECTED}


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("site", ["output", "blocks", "blocks.1"])
def test_a_wrapper_and_its_model_are_freed_with_the_last_reference(site):
    network = Network()
    denoiser = CachedDenoiser(network, Uniform(every=2), site=site)
    with denoiser.run(timesteps=TIMES):
        for t in TIMES:
            denoiser(torch.ones(1, 4), t)
    kept = weakref.ref(denoiser), weakref.ref(network)
    del denoiser, network
    assert [each() for each in kept] == [None, None]


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("site", ["output", "blocks", "blocks.1"])
def test_a_model_is_freed_after_its_cache_was_taken_off(site):
    network = Network()
    enabled = cachepolicies.enable(network, Uniform(every=2), site=site)
    with enabled.run(TIMES):
        for t in TIMES:
            network(torch.ones(1, 4), t)
    enabled.disable()
    kept = weakref.ref(network)
    del network, enabled
    assert kept() is None


@pytest.mark.parametrize("site", ["output", "blocks"])
def test_nothing_is_kept_after_a_run(site):
    network = Network()
    denoiser = CachedDenoiser(network, Uniform(every=2), site=site)
    x = torch.ones(1, 4)
    with denoiser.run(timesteps=TIMES):
        outputs = [denoiser(x, t) for t in TIMES]
    kept = [weakref.ref(each) for each in (x, *outputs)]
    del x, outputs
    gc.collect()
    assert all(each() is None for each in kept)


def test_calls_that_only_read_their_memory_are_cached():
    """Qwen-Image 2.1 fills a memory of the text at its first step, and reads it at the others."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    tiny = TINY["QwenImage21Transformer2DModel"]
    model: Any = tiny.build()
    levels = (0.9, 0.8, 0.7, 0.6, 0.5)

    def run():
        memory = QwenImage21KVCache(3)
        outputs = []
        for k, t in enumerate(levels):
            mode = "cached" if k else "extract"
            inputs = tiny.inputs(1, seed=k, t=t) | {"kv_cache": memory, "kv_cache_mode": mode}
            given = tiny.inputs(1)  # text and layout are the same at every step
            given |= {name: inputs[name] for name in ("hidden_states", "timestep", "kv_cache", "kv_cache_mode")}
            outputs.append(model(**given).sample)
        return outputs

    plain = run()
    with cachepolicies.enable(model, "never") as enabled, enabled.run(levels):
        assert all(map(torch.equal, run(), plain))
    with cachepolicies.enable(model, Scripted({0.7: True, 0.5: True})) as enabled, enabled.run(levels):
        found = run()
    assert [record.evaluated[0] for record in enabled.trace.records] == [True, True, False, True, False]
    assert enabled.trace.records[0].reason == (EngineReason.WRITES_MEMORY,)
    same = [torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert same == [True, True, False, True, False]
