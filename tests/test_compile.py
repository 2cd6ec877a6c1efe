"""Compiled models: blocks by themselves and whole, before and after enabling; graphs are counted over a run."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from attrs import field, frozen
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from cachepolicies import CachedDenoiser, RunError, SettingsError, disable, enable
from cachepolicies.policies import Never, Uniform
from scripted import Scripted
from stack_by_hand import blocks_of
from tiny_models import TINY, TinyModel
from tiny_pipelines import PIPELINES

MODELS = ("WanTransformer3DModel", "FluxTransformer2DModel", "Flux2Transformer2DModel")
STEPS = 30
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*nothing was reused:cachepolicies.CacheWarning",
    "ignore:.*too few to gain:cachepolicies.CacheWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:User provided device_type of 'cuda':UserWarning",
    "ignore::FutureWarning:diffusers",
)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@frozen(eq=False)
class Loop:
    """A run of 30 steps as a pipeline makes it: the conditioning is the same at every step, x and t are new tensors.

    Attributes:
        outputs: of every step.
        graphs: how many had been compiled after every step.
    """

    outputs: list[Tensor] = field(factory=list)
    graphs: list[int] = field(factory=list)

    @torch.no_grad()
    def run(self, model, tiny: TinyModel, counter: CompileCounter | None = None, steps: int = STEPS) -> Loop:
        inputs = tiny.inputs(1)
        x = inputs[tiny.x_name]
        for t in levels(tiny, steps):
            now = {**inputs, tiny.x_name: x, tiny.t_name: torch.full_like(inputs[tiny.t_name], t)}
            y = model(**now)[0]
            self.outputs.append(y)
            self.graphs.append(0 if counter is None else counter.frame_count)
            x = x - y[:, : x.shape[1]] / steps
        return self


def levels(tiny: TinyModel, steps: int = STEPS) -> list[float]:
    span = tiny.t_end - tiny.t_start
    return [float(torch.tensor(tiny.t_start + span * k / (steps - 1))) for k in range(steps)]


def two_of_three(tiny: TinyModel) -> Scripted:
    """Reuse two of three steps."""
    return Scripted({t: True for k, t in enumerate(levels(tiny)) if k % 3})


def compile_as(mode: str, model: Any, backend):
    """Compile, and return what is called from then on."""
    if mode == "regional":
        model.compile_repeated_blocks(fullgraph=True, backend=backend)
    elif mode == "in place":
        model.compile(backend=backend)
    else:
        return torch.compile(model, backend=backend)
    return model


@pytest.fixture(scope="module")
def eager() -> dict[str, list[Tensor]]:
    """Outputs of the cached eager models."""
    found = {}
    for key in MODELS:
        tiny = TINY[key]
        model = tiny.build()
        with enable(model, two_of_three(tiny)) as on:
            found[key] = Loop().run(model, tiny).outputs
            assert on.trace.cache_ratio == pytest.approx(2 / 3)
    return found


class Around:
    """What a sampler may put around a model."""

    def __init__(self, called) -> None:
        self.network = called

    def __call__(self, hidden_states, timestep, **kwargs):
        return self.network(hidden_states, timestep, **kwargs)


def check(outputs: list[Tensor], wanted: list[Tensor]) -> None:
    for got, want in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("WanTransformer3DModel", "cache first"),
        ("FluxTransformer2DModel", "compiled first"),
        ("Flux2Transformer2DModel", "cache first"),
    ],
)
def test_blocks_compiled_one_by_one_stay_one_graph_each(key, order, eager):
    """``fullgraph=True`` raises where a block is more than one graph; a graph more would be a recompilation."""
    tiny = TINY[key]
    model = tiny.build()
    counter = CompileCounter()
    if order == "compiled first":
        compile_as("regional", model, counter)
    with enable(model, two_of_three(tiny)) as on:
        if order == "cache first":
            compile_as("regional", model, counter)
        cached = Loop().run(model, tiny, counter)
        assert on.trace.cache_ratio == pytest.approx(2 / 3)
    check(cached.outputs, eager[key])
    kinds = len({type(block) for block in blocks_of(model)})
    assert kinds <= counter.frame_count <= kinds + 1  # the second block of a list may get tensors of other strides
    assert cached.graphs[1] == cached.graphs[-1], "something was compiled again after both kinds of step were seen"


@pytest.mark.parametrize(
    ("key", "mode", "order"),
    [
        ("WanTransformer3DModel", "in place", "compiled first"),
        ("FluxTransformer2DModel", "wrapped", "cache first"),
        ("Flux2Transformer2DModel", "in place", "cache first"),
    ],
)
def test_a_model_compiled_whole_compiles_its_parts_once(key, mode, order, eager):
    """Graphs over the 30 steps: none but the first two steps add any, and the model is compiled inside of the cache."""
    tiny = TINY[key]
    model = tiny.build()
    counter = CompileCounter()
    called = model
    if order == "compiled first":
        called = compile_as(mode, model, counter)
    on = enable(called, two_of_three(tiny))
    if order == "cache first":
        called = compile_as(mode, model, counter)
    cached = Loop().run(called, tiny, counter)
    check(cached.outputs, eager[key])
    assert on.trace.cache_ratio == pytest.approx(2 / 3)
    assert counter.op_count > 10 * len(blocks_of(model)), "the blocks ran without being compiled"
    after_both_kinds = cached.graphs[-1] - cached.graphs[1]
    assert after_both_kinds <= 2
    # the graph is broken where the cache is left to Python, and nowhere else: not in every block
    assert counters["graph_break"]
    assert not [why for why in counters["graph_break"] if "`torch.compiler.disable()`d function" not in why]
    disable(called)


@pytest.mark.parametrize(
    ("site", "around"),
    [
        ("blocks", lambda called: called),
        ("blocks.1", lambda called: called),
        ("blocks.1", lambda called: Around(called)),
        ("blocks", "closure"),
    ],
)
def test_a_compiled_model_in_a_wrapper_is_compiled(site, around):
    """Counting its operations in the first call would have the compiler give it up."""
    tiny = TINY["WanTransformer3DModel"]
    model = tiny.build()
    counter = CompileCounter()
    called = torch.compile(model, backend=counter)

    def closure(hidden_states, timestep, **kwargs):
        return called(hidden_states, timestep, **kwargs)

    vars(closure)["network"] = model
    denoiser = CachedDenoiser(closure if around == "closure" else around(called), two_of_three(tiny), site=site)
    loop = Loop().run(denoiser, tiny, counter)
    eager = CachedDenoiser(tiny.build(), two_of_three(tiny), site=site)
    check(loop.outputs, Loop().run(eager, tiny).outputs)
    assert denoiser.cache_ratio == pytest.approx(2 / 3)
    assert counter.op_count > 20
    assert loop.graphs[-1] - loop.graphs[1] <= 2


def test_a_function_that_is_compiled_inside_of_a_block_stays_compiled():
    """As models do with flex attention; nobody can see it from outside."""
    counter = CompileCounter()

    @torch.compile(backend=counter)
    def compiled(hidden_states):
        return hidden_states + torch.tanh(hidden_states)

    class Inside(Block):
        def forward(self, hidden_states, t):
            return compiled(super().forward(hidden_states, t))

    model = Stack()
    model.blocks = nn.ModuleList(Inside() for _ in range(3))
    denoiser = CachedDenoiser(model, Never(), site="blocks")
    counted = CachedDenoiser(model, Scripted(), site="blocks")
    for one in (counted, denoiser):
        for t in (3.0, 2.0):
            one(torch.ones(1, 4), torch.full((1,), t))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("name", "mode"), [("wan", "wrapped"), ("flux", "regional")])
def test_a_compiled_model_in_its_pipeline(name, mode):
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with enable(pipe, Uniform(every=3)):
        want = tiny.call(pipe, steps=STEPS)
    counter = CompileCounter()
    pipe.transformer = compile_as(mode, pipe.transformer, counter)
    with enable(pipe, Uniform(every=3)) as on:
        first = tiny.call(pipe, steps=STEPS)
        graphs = counter.frame_count
        assert graphs > 0
        second = tiny.call(pipe, steps=STEPS)
        assert on.trace.cache_ratio > 0.5
    torch.testing.assert_close(first, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, want, atol=1e-5, rtol=1e-5)
    assert counter.frame_count - graphs <= 2


def test_with_a_code_generator_the_blocks_are_compiled_and_skipped():
    tiny = TINY["WanTransformer3DModel"]
    model: Any = tiny.build()
    with enable(model, two_of_three(tiny)):
        want = Loop().run(model, tiny, steps=STEPS).outputs
    model.compile_repeated_blocks(fullgraph=True, backend="inductor" if shutil.which("g++") else "aot_eager")
    with enable(model, two_of_three(tiny)) as on:
        check(Loop().run(model, tiny).outputs, want)
        assert on.trace.cache_ratio == pytest.approx(2 / 3)


def test_rows_part_in_a_compiled_model():
    """The forward is broken off in the middle of what is being compiled."""
    tiny = TINY["WanTransformer3DModel"]
    now, other = tiny.inputs(3, seed=1, t=800.0), tiny.inputs(3, seed=2, t=700.0)
    later = {**now, tiny.x_name: other[tiny.x_name], tiny.t_name: other[tiny.t_name]}
    outputs = []
    for compiled in (False, True):
        model = tiny.build()
        called = torch.compile(model, backend=CompileCounter()) if compiled else model
        with enable(model, Scripted({700.0: (True, False, True)})) as on, on.run(timesteps=[800.0, 700.0]):
            called(**now)
            outputs.append(called(**later)[0])
        assert [r.evaluated for r in on.trace.records] == [(True, True, True), (False, True, False)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_a_submodule_of_a_compiled_model():
    tiny = TINY["WanTransformer3DModel"]
    outputs = []
    for compiled in (False, True):
        model = tiny.build()
        counter = CompileCounter()
        called = torch.compile(model, backend=counter) if compiled else model
        with enable(model, two_of_three(tiny), site="blocks.1.attn1") as on:
            loop = Loop().run(called, tiny, counter, steps=STEPS)
            assert on.trace.cache_ratio == pytest.approx(2 / 3)
        outputs.append(loop.outputs)
        assert loop.graphs[-1] - loop.graphs[1] <= 2
    assert counter.op_count > 20
    check(*outputs)


def test_before_and_after_the_cache_a_compiled_model_is_as_without_one():
    """What the counts above are compared with: t is no constant of a graph, so there is one for the whole run."""
    tiny = TINY["WanTransformer3DModel"]
    model = tiny.build()
    counter = CompileCounter()
    plain = Loop().run(compile_as("in place", model, counter), tiny, counter, steps=3)
    assert plain.graphs == [1, 1, 1]
    with enable(model, Never()) as on:
        check(Loop().run(model, tiny, counter, steps=3).outputs, plain.outputs)
        assert on.trace.calls == 3
    again = Loop().run(model, tiny, counter, steps=3)
    check(again.outputs, plain.outputs)
    assert "_diffusers_hook" not in vars(model)


# --- where nothing can be skipped ------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor, t: Tensor) -> Tensor:
        return hidden_states + torch.tanh(self.linear(hidden_states)) * t[:, None]


class Stack(nn.Module):
    """A model that the generic adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, t)
        return self.head(x)


INPUTS = (torch.ones(2, 4), torch.full((2,), 0.5))


def frozen_graphs() -> dict[str, nn.Module]:
    stack = Stack().eval().requires_grad_(False)
    return {
        "traced": torch.jit.trace(stack, INPUTS),
        "scripted": torch.jit.script(stack),
        "exported": torch.export.export(stack, INPUTS).module(),
        "fx": fx.symbolic_trace(stack),
    }


@pytest.mark.parametrize("kind", ["traced", "scripted", "exported", "fx"])
@pytest.mark.parametrize("site", ["blocks", "blocks.0"])
def test_a_graph_in_which_nothing_can_be_skipped_is_refused(kind, site):
    graph = frozen_graphs()[kind]
    with pytest.raises(SettingsError, match=r"inside one graph.*compile with torch\.compile, or use site='output'"):
        enable(graph, Never(), site=site)
    with pytest.raises(SettingsError, match="inside one graph"):
        CachedDenoiser(graph, Never(), site=site)
    wrapped = CachedDenoiser(graph, Scripted(), site="output")
    torch.testing.assert_close(wrapped(*INPUTS), Stack()(*INPUTS))
    assert wrapped.trace.calls == 1
    if isinstance(graph, torch.jit.ScriptModule):
        with pytest.raises(SettingsError, match="is TorchScript and cannot be hooked; wrap it"):
            enable(graph, Scripted(), site="output")
    else:
        with enable(graph, Scripted(), site="output") as on:
            torch.testing.assert_close(graph(*INPUTS), Stack()(*INPUTS))
            assert on.trace.calls == 1


def test_blocks_that_were_replaced_by_a_graph_are_noticed():
    """The model still has its blocks, but what is called is a graph of them: no gate is ever reached."""
    stack: Any = Stack().eval().requires_grad_(False)
    graph = torch.jit.trace(stack, INPUTS)
    stack.forward = lambda x, t: graph(x, t)
    for site in ("blocks", "blocks.0"):
        with enable(stack, Scripted(), site=site), pytest.raises(RunError, match="was never reached in a call"):
            stack(*INPUTS)


def test_exporting_an_enabled_model_is_refused():
    """The graph would do without the cache; torch says so."""
    stack = Stack().eval().requires_grad_(False)
    with enable(stack, Scripted()) as on:
        with pytest.raises(RuntimeError, match=r"disable.*export"):
            torch.export.export(stack, INPUTS)
        stack(*INPUTS)
        assert on.trace.calls == 1
