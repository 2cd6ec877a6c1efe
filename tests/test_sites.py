"""Sites inside the model: gates, submodules, wrappers, audits, adapters, and every policy at the trained blocks."""

from __future__ import annotations

import functools
import sys
from collections import namedtuple
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cachepolicies import (
    CachedDenoiser,
    InputError,
    NeedsError,
    RunError,
    SettingsError,
    row_rms,
    sample,
)
from cachepolicies.adapters import Adapter, Blocks, OutputOf
from cachepolicies.builtin import plugin
from cachepolicies.engine.memory import finite_rows
from cachepolicies.hookspecs import hookimpl
from cachepolicies.policies import Never
from cachepolicies.reference.guided import GuidedDenoiser
from cachepolicies.registry.load import BUILTIN, load_plugins
from cachepolicies.sites import flops
from cachepolicies.sites._gate import gates
from cachepolicies.sites._rows import by_sample, copies_of, merge_rows, pack, replace_tensors, tensors_in, unpack
from cachepolicies.substitutes.resolve import as_substitute
from scripted import Scripted
from stack_by_hand import ByHand, blocks_of, calls_of
from subjects import subject
from tiny_models import TINY, level, moved

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

WAN = TINY["WanTransformer3DModel"]
seeds = st.integers(0, 2**16)


# --- gates -----------------------------------------------------------------------------------------------------------


def doubled(proceed, args, kwargs):
    return 2 * proceed(*args, **kwargs)


def test_a_gate_is_there_for_the_length_of_the_context_and_leaves_nothing():
    module = nn.Linear(3, 3)
    x = torch.ones(1, 3)
    before, attributes = module(x), dict(vars(module))
    with gates({module: doubled}):
        assert torch.equal(module(x), 2 * before)
        assert isinstance(module, nn.Linear)
        assert type(module).__name__ == "Linear"
        assert module.state_dict().keys() == {"weight", "bias"}
    assert type(module) is nn.Linear
    assert vars(module) == attributes
    assert torch.equal(module(x), before)


def test_a_gate_uses_the_same_class_every_time():
    """The guards of a compiled graph ask for it."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    with gates({first: doubled}):
        kind = type(first)
    with gates({first: doubled, second: doubled}):
        assert type(first) is type(second) is kind


def test_gates_are_taken_off_after_an_exception():
    module = nn.Linear(3, 3)
    attributes = dict(vars(module))
    with pytest.raises(KeyError, match="inside"), gates({module: doubled}):
        raise KeyError("inside")
    assert type(module) is nn.Linear
    assert vars(module) == attributes


def test_a_second_gate_is_refused_and_those_placed_before_it_are_taken_off():
    taken, free = nn.Linear(3, 3), nn.Linear(3, 3)
    with gates({taken: doubled}):
        kind = type(taken)
        with pytest.raises(RunError, match="inside another cached call"), gates({free: doubled, taken: doubled}):
            raise AssertionError("entered")
        assert type(free) is nn.Linear
        assert not any(name.startswith("_cachepolicies") for name in vars(free))
        assert type(taken) is kind
    assert type(taken) is nn.Linear


@pytest.mark.parametrize("site", ["blocks", "blocks.1"])
def test_a_cache_inside_a_cache_is_refused(site):
    model = WAN.build()
    inner = CachedDenoiser(model, Scripted(), site=site)

    class Outer:
        network = model

        def __call__(self, hidden_states, timestep, **kwargs):
            return inner(hidden_states=hidden_states, timestep=timestep, **kwargs)

    outer = CachedDenoiser(Outer(), Scripted(), site=site)
    with pytest.raises(RunError, match="use one cache on a model at a time"):
        outer(**WAN.inputs(1))
    assert {type(block).__name__ for block in model.get_submodule("blocks").children()} == {"WanTransformerBlock"}
    assert not any(name.startswith("_cachepolicies") for module in model.modules() for name in vars(module))
    inner(**WAN.inputs(1))


@pytest.mark.parametrize("site", ["blocks", "blocks.1"])
@pytest.mark.parametrize("batch", [1, 3])
def test_between_calls_nothing_about_the_model_differs(site, batch):
    model = WAN.build()
    before = {name: (type(m), sorted(vars(m))) for name, m in model.named_modules()}
    now = WAN.inputs(batch)
    later = moved(WAN, now)
    script = {level(WAN, later): tuple(row % 2 == 0 for row in range(batch))}
    cached = CachedDenoiser(model, Scripted(script), site=site)
    for inputs in (now, later):
        cached(**inputs)
        assert {name: (type(m), sorted(vars(m))) for name, m in model.named_modules()} == before

    def fail(module, args):
        raise KeyError("in a block")

    handle = model.get_submodule("blocks.1").register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        cached(**now)
    handle.remove()
    assert {name: (type(m), sorted(vars(m))) for name, m in model.named_modules()} == before


# --- a submodule -----------------------------------------------------------------------------------------------------

SUBMODULES = (
    ("FluxTransformer2DModel", "transformer_blocks.1.attn"),  # returns a tuple
    ("FluxTransformer2DModel", "transformer_blocks.0"),  # returns a tuple of both streams
    ("FluxTransformer2DModel", "transformer_blocks.0.norm1"),  # five tensors of different shapes
    ("FluxTransformer2DModel", "norm_out"),
    ("WanTransformer3DModel", "blocks.1.attn1"),
    ("WanTransformer3DModel", "condition_embedder"),  # a tuple with None in it
    ("LTXVideoTransformer3DModel", "transformer_blocks.2.ff"),
)


@pytest.mark.parametrize(("key", "path"), SUBMODULES)
def test_a_submodule_is_held_as_by_hand(key, path):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(2)
    later = moved(tiny, now)
    bare, fresh = model(**now)[0], model(**later)[0]
    module = model.get_submodule(path)
    seen = []
    handle = module.register_forward_hook(lambda m, args, output: seen.append(output))
    model(**now)
    handle.remove()
    handle = module.register_forward_hook(lambda m, args, output: seen[0])
    expected = model(**later)[0]
    handle.remove()
    assert not torch.allclose(expected, fresh, atol=1e-6)

    never = CachedDenoiser(model, Never(), site=path)
    assert torch.equal(never(**now)[0], bare)
    cached = CachedDenoiser(model, Scripted({level(tiny, later): True}), site=path)
    assert torch.equal(cached(**now)[0], bare)
    calls, handles = calls_of([module])
    reused = cached(**later)
    for handle in handles:
        handle.remove()
    assert not calls
    torch.testing.assert_close(reused[0], expected, atol=1e-6, rtol=1e-6)
    assert type(reused) is type(model(**now))
    assert cached.cache_ratio == 0.5


@pytest.mark.parametrize(("key", "path"), SUBMODULES)
def test_rows_of_a_submodule_part_as_if_they_were_alone(key, path):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(3)
    later = moved(tiny, now)
    together = CachedDenoiser(model, Scripted({level(tiny, later): (True, False, True)}), site=path)
    together(**now)
    output = together(**later)[0]
    for row, reuse in enumerate((True, False, True)):
        alone = CachedDenoiser(model, Scripted({level(tiny, later): reuse}), site=path)
        alone(**tiny.rows(now, [row]))
        single = alone(**tiny.rows(later, [row]))[0]
        torch.testing.assert_close(output[row : row + 1], single, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("block.1", r"'block.1' names no module of WanTransformer3DModel; WanTransformer3DModel has .*blocks"),
        ("blocks.7", r"'blocks.7' names no module .*; WanTransformer3DModel.blocks has 0, 1, 2"),
        ("blocks.1.attn", r"WanTransformer3DModel.blocks.1 has norm1, attn1"),
        ("proj_out.weight", r"WanTransformer3DModel.proj_out has no submodules"),
        ("", r"site is ''"),
    ],
)
def test_an_unknown_path_lists_what_is_there(path, message):
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(WAN.build(), Never(), site=path)


class Twice(nn.Module):
    """A sampler's trick inside of a denoiser: the network is called twice in one call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, hidden_states, timestep, **kwargs):
        first = self.network(hidden_states, timestep, **kwargs)[0]
        return self.network(hidden_states + first, timestep, **kwargs)[0]


@pytest.mark.parametrize("site", ["blocks", "blocks.1"])
def test_a_site_that_is_reached_twice_in_a_call_is_refused(site):
    class Caller:
        def __init__(self, network):
            self.network, self.inner = network, Twice(network)

        def __call__(self, hidden_states, timestep, **kwargs):
            return self.inner(hidden_states, timestep, **kwargs)

    cached = CachedDenoiser(Caller(WAN.build()), Scripted(), site=site)
    with pytest.raises(RunError, match=r"was reached twice in one call; wrap or enable the network itself"):
        cached(**WAN.inputs(1))
    assert not cached.trace.calls


def test_a_site_that_is_not_reached_is_noticed():
    class Idle:
        def __init__(self, network):
            self.network = network

        def __call__(self, hidden_states, timestep, **kwargs):
            return hidden_states

    for site in ("blocks", "blocks.0"):
        with pytest.raises(RunError, match="was never reached in a call"):
            CachedDenoiser(Idle(WAN.build()), Scripted(), site=site)(**WAN.inputs(1))


def test_a_module_without_a_tensor_is_refused():
    class Words(nn.Module):
        def forward(self, x):
            return "words"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = Words()

        def forward(self, x, t):
            self.words(x)
            return x

    with pytest.raises(InputError, match=r"'words' returned str without a tensor"):
        CachedDenoiser(Model(), Scripted(), site="words")(torch.ones(2, 3), 1.0)


# --- a wrapper that doubles the batch --------------------------------------------------------------------------------


def guided(model) -> GuidedDenoiser:
    return GuidedDenoiser(model, 3.0, argument="encoder_hidden_states", null=lambda n: torch.zeros(n, 6, 16))


@pytest.mark.parametrize("site", ["blocks", "blocks.1", "blocks.2.attn2"])
@pytest.mark.parametrize("script", [(True, False, True), (False, True, False), True])
def test_samples_decide_apart_inside_a_doubled_batch(site, script):
    """Every sample of the sampler's batch stands twice in the network's."""
    model = WAN.build()
    now = WAN.inputs(3)
    later = moved(WAN, now)

    def arguments(inputs, rows=slice(None)):
        return inputs["hidden_states"][rows], inputs["timestep"][rows], inputs["encoder_hidden_states"][rows]

    together = CachedDenoiser(guided(model), Scripted({level(WAN, later): script}), site=site)
    first = together(*arguments(now))
    assert torch.equal(first, guided(model)(*arguments(now)))
    output = together(*arguments(later))
    fresh = guided(model)(*arguments(later))
    decided = (script,) * 3 if isinstance(script, bool) else script
    assert together.trace.records[1].evaluated == tuple(not reuse for reuse in decided)
    for row, reuse in enumerate(decided):
        alone = CachedDenoiser(guided(model), Scripted({level(WAN, later): reuse}), site=site)
        one = slice(row, row + 1)
        alone(*arguments(now, one))
        torch.testing.assert_close(output[one], alone(*arguments(later, one)), atol=3e-5, rtol=3e-5)
        assert torch.allclose(output[one], fresh[one], atol=3e-5) != reuse


# --- audit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["WanTransformer3DModel", "FluxTransformer2DModel", "LTX2VideoTransformer3DModel"])
@pytest.mark.parametrize("script", [True, (False, True)])
def test_an_audit_measures_the_residual_and_changes_nothing(key, script):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(2)
    later = moved(tiny, now)
    outputs = []
    for audit in (0.0, 1.0):
        cached = CachedDenoiser(model, Scripted({level(tiny, later): script}), site="blocks", audit=audit)
        calls, handles = calls_of(blocks_of(model))
        cached(**now)
        before = len(calls)
        outputs.append(cached(**later)[0])
        for handle in handles:
            handle.remove()
    assert torch.equal(*outputs)
    assert len(calls) > before
    record = cached.trace.records[1]
    decided = (script,) * 2 if isinstance(script, bool) else script
    assert record.evaluated == tuple(not reuse for reuse in decided)

    hand = ByHand(model)
    hand.run(now, replace=False)
    held = hand.residuals
    hand.run(later, replace=False)
    fresh = hand.residuals
    assert held is not None
    assert fresh is not None
    change = torch.cat([(a - b).flatten(1) for a, b in zip(fresh, held, strict=True)], dim=1)
    assert record.audit is not None
    for row, reuse in enumerate(decided):
        error = record.audit.true_error[row]
        if reuse:
            assert error == pytest.approx(float(row_rms(change)[row]), rel=1e-3)
            assert error > 0
        else:
            assert error != error  # not a number: the row was evaluated


# --- adapters --------------------------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """What the blocks below compute with."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)


class Block(OneLayer):
    """A block as a user may write it."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * (1 + t[:, None])


class PairBlock(OneLayer):
    """Takes two streams and returns both."""

    def forward(self, x: Tensor, context: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mixed = torch.tanh(self.linear(x + context)) * (1 + t[:, None])
        return context + mixed, x + mixed


class Plain(nn.Module):
    """One list of blocks of one class."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.embed = nn.Linear(4, 4)
            self.layers = nn.ModuleList([block() for _ in range(3)])
            self.head = nn.Linear(4, 4)
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, t)
        return self.head(x) * t[:, None]


class Pair(Plain):
    """Two streams, of which the second is the image."""

    def __init__(self) -> None:
        super().__init__(PairBlock)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, context = self.embed(x), self.embed(x.flip(1))
        for layer in self.layers:
            context, x = layer(x, context=context, t=t)
        return self.head(x) * t[:, None]


def points(rows: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    return [(torch.randn(rows, 4, generator=generator), torch.full((rows,), t)) for t in (0.5, 0.25)]


def residual_by_hand(model: Plain) -> Tensor:
    """The second output with the first residual, the stack written out."""
    (x, t), (later_x, later_t) = points()
    entered = model.embed(x)
    left = entered
    if isinstance(model, Pair):
        context = model.embed(x.flip(1))
        for layer in model.layers:
            context, left = layer(left, context, t)
    else:
        for layer in model.layers:
            left = layer(left, t)
    return model.head(model.embed(later_x) + (left - entered)) * later_t[:, None]


PAIR = Adapter("Pair", stack=[Blocks("layers", hands_on=("context", "x"))], streams="x")


def run_points(denoiser) -> list[Tensor]:
    return [denoiser(x, t) for x, t in points()]


def test_a_plain_model_needs_no_adapter():
    model = Plain()
    cached = CachedDenoiser(model, Scripted({0.25: True}), site="blocks")
    first, second = run_points(cached)
    assert torch.equal(first, model(*points()[0]))
    torch.testing.assert_close(second, residual_by_hand(model))
    assert not torch.allclose(second, model(*points()[1]), atol=1e-4)


def with_two_lists():
    model = Plain()
    model.more = nn.ModuleList([Block()])
    return model


def with_two_classes():
    model = Plain()
    model.layers.append(PairBlock())
    return model


class Renamed(Block):
    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (with_two_lists, r"it has 2 lists of modules \(layers, more\), not one"),
        (with_two_classes, r"the modules in 'layers' are of different classes \(Block, PairBlock\)"),
        (functools.partial(Plain, Renamed), r"the first argument of its blocks is 'tokens', not one of hidden_states"),
        (functools.partial(nn.Linear, 4, 4), r"it has 0 lists of modules \(none\), not one"),
    ],
)
def test_a_model_that_is_not_plain_is_refused_with_the_recipe(build, why):
    with pytest.raises(NeedsError, match=why + r".*Use site='output'.*register\('.*cachepolicies_register_adapters"):
        CachedDenoiser(build(), Never(), site="blocks")


def test_two_streams_by_an_adapter_that_is_passed():
    model = Pair()
    cached = CachedDenoiser(model, Scripted({0.25: True}), site="blocks", adapter=PAIR)
    first, second = run_points(cached)
    assert torch.equal(first, model(*points()[0]))
    torch.testing.assert_close(second, residual_by_hand(model))


def test_an_adapter_of_a_plugin_is_found_by_class_and_base_class(monkeypatch):
    class Special(Pair):
        """Served by its base class."""

    builtin = dict(vars(plugin))

    @hookimpl
    def cachepolicies_register_adapters(register):
        builtin["cachepolicies_register_adapters"](register)
        register("Pair", lambda: PAIR, "Two streams.")

    with_pair = ModuleType("with_pair")
    vars(with_pair).update(builtin, cachepolicies_register_adapters=cachepolicies_register_adapters)
    monkeypatch.setattr("cachepolicies.registry.load._loaded", None)
    monkeypatch.setitem(sys.modules, BUILTIN, with_pair)
    for model in (Pair(), Special()):
        cached = CachedDenoiser(model, Scripted({0.25: True}), site="blocks")
        torch.testing.assert_close(run_points(cached)[1], residual_by_hand(model))


def test_something_else_than_an_adapter_is_refused():
    with pytest.raises(SettingsError, match="adapter is a dict; give a cachepolicies"):
        CachedDenoiser(Pair(), Never(), site="blocks", adapter={"stack": "layers"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("adapter", "error", "message"),
    [
        (Adapter("Pair", [Blocks("layer", ("context", "x"))], "x"), SettingsError, r"'layer' names no .* has .*layers"),
        (
            Adapter("Pair", [Blocks("layers", ("context", "x"))], "hidden_states"),
            SettingsError,
            r"no argument 'hidden_states'; its arguments are x, context, t",
        ),
        (Adapter("Pair", [Blocks("layers", ("context",))], "x"), SettingsError, r"hand on \('context',\), in which"),
        (Adapter("Pair", [Blocks("layers", "x")], "x"), InputError, r"returned a tuple where its adapter expects"),
        (
            Adapter("Pair", [Blocks("layers", ("context", "x"))], "x", "heads"),
            SettingsError,
            r"'heads' names no module",
        ),
        (
            Adapter("Pair", [Blocks("layers", ("context", "x"))], "x", signals={"s": OutputOf("nowhere")}),
            SettingsError,
            r"'nowhere' names no module",
        ),
    ],
)
def test_wrong_adapter_data_is_named(adapter, error, message):
    with pytest.raises(error, match=message):
        run_points(CachedDenoiser(Pair(), Scripted({0.25: True}), site="blocks", adapter=adapter))


@pytest.mark.parametrize("parts", [([], "x"), ([Blocks("layers")], ())])
def test_an_empty_adapter_is_refused(parts):
    with pytest.raises(SettingsError, match="at least one block list and one stream"):
        Adapter("Pair", *parts)


def test_a_signal_whose_source_runs_behind_the_blocks_is_refused():
    adapter = Adapter("Plain", [Blocks("layers", "x")], "x", signals={"late": OutputOf("head")})
    cached = CachedDenoiser(Plain(), Scripted(signals=("late",)), site="blocks", adapter=adapter)
    with pytest.raises(InputError, match=r"signal 'late' of Plain: its source 'head' did not run before the blocks"):
        run_points(cached)


def test_a_signal_that_the_adapter_lacks_is_refused_at_set_up():
    with pytest.raises(NeedsError, match=r"needs the signal mood .* site .blocks. of Plain .*supplies: spatial-latent"):
        CachedDenoiser(Plain(), Scripted(signals=("mood",)), site="blocks")


class Narrowing(Plain):
    """Its last block returns something of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[-1].forward = lambda x, t: x[:, :2]
        self.head = nn.Linear(2, 4)


def test_a_stream_that_changes_its_shape_has_no_residual():
    with pytest.raises(InputError, match=r"stream 'x' of Narrowing enters .* \(3, 4\) and leaves them as \(3, 2\)"):
        run_points(CachedDenoiser(Narrowing(), Scripted(), site="blocks"))


class Growing(nn.Module):
    """The number of tokens inside depends on t."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Tokens()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = x[:, None].expand(-1, 2 if t[0] > 0.3 else 3, -1)
        return self.layers[0](tokens).mean(dim=1)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_inner_shapes_that_change_within_a_run_are_noticed():
    cached = CachedDenoiser(Growing(), Scripted({0.25: True}), site="blocks")
    x = torch.ones(2, 4)
    cached(x, torch.full((2,), 0.5))
    with pytest.raises(InputError, match="the model changed its inner shapes within a run"):
        cached(x, torch.full((2,), 0.25))
    assert torch.equal(cached(x, torch.full((2,), 0.25)), 2 * x)


# --- rows ------------------------------------------------------------------------------------------------------------

shapes = st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple), min_size=1, max_size=3)


def block_copies(rows: int, copies: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """``(copies * rows, ...)`` in which the entries of every row are told apart."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(copies * rows, *shape, generator=generator)


@given(st.integers(1, 4), shapes, st.data())
def test_pack_and_unpack_are_inverse(rows, inner, data):
    copies = [data.draw(st.integers(1, 3)) for _ in inner]
    streams = [block_copies(rows, k, shape, seed) for seed, (k, shape) in enumerate(zip(copies, inner, strict=True))]
    packed = pack(streams, rows, "streams")
    assert packed.shape[0] == rows
    assert packed.numel() == sum(stream.numel() for stream in streams)
    for stream, back in zip(streams, unpack(packed, streams, rows), strict=True):
        assert torch.equal(back, stream)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_packed_row_holds_its_own_copies_only(rows, copies, width, data):
    """Rows cut from what was packed are what is packed of the rows."""
    stream = block_copies(rows, copies, (width,), 0)
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, unique=True))
    places = [copy * rows + row for copy in range(copies) for row in chosen]
    assert torch.equal(
        pack([stream], rows, "x").reshape(rows, -1)[chosen],
        pack([stream[places]], len(chosen), "x").reshape(len(chosen), -1),
    )
    assert copies_of(stream, rows, "x") == copies
    assert by_sample(stream, rows, "x").shape[0] == rows


def test_what_cannot_be_packed_is_named():
    with pytest.raises(InputError, match=r"the blocks has shape \(5, 2\) in a call with 2 rows"):
        pack([torch.ones(5, 2)], 2, "the blocks")
    with pytest.raises(InputError, match=r"streams of torch\.float32, torch\.float64"):
        pack([torch.ones(2, 1), torch.ones(2, 1, dtype=torch.float64)], 2, "the blocks")
    with pytest.raises(InputError, match="changed its inner shapes"):
        unpack(torch.ones(2, 3), [torch.ones(2, 2)], 2)


Named = namedtuple("Named", "first second")


def nests(rows: list[int]) -> dict[str, object]:
    """Outputs for some rows, whose values say which row they belong to."""
    values = torch.tensor(rows, dtype=torch.float32)
    return {
        "tensor": values[:, None] * torch.ones(1, 3),
        "tuple": (values, values[:, None] + 1),
        "named": Named(values, values + 2),
        "output": Transformer2DModelOutput(sample=values[:, None]),
        "lists inside": ([values[k : k + 1] for k in range(len(rows))],),
        "none inside": (values, None),
        "mapping": {"a": values, "b": (values + 3,)},
    }


@pytest.mark.parametrize("kind", list(nests([0])))
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_outputs_of_parts_are_put_together(kind, owner):
    parts = [[row for row in range(6) if owner[row] == part] for part in range(4)]
    merged = merge_rows([(rows, nests(rows)[kind]) for rows in parts if rows], 6)
    whole = nests(list(range(6)))[kind]
    assert type(merged) is type(whole)
    pairs = list(zip(tensors_in(merged), tensors_in(whole), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"returned \(2, 3\) torch.float32 for 1 of 2 rows .* per_sample=False"):
        merge_rows([([0], torch.ones(1, 3)), ([1], torch.ones(2, 3))], 2)
    with pytest.raises(InputError, match="per_sample=False"):
        merge_rows([([0], torch.ones(1, 3)), ([1], torch.ones(1, 4))], 2)


@pytest.mark.parametrize("kind", list(nests([0])))
def test_the_tensors_of_a_nest_can_be_exchanged(kind):
    nest = nests([0, 1])[kind]
    twice = replace_tensors(nest, [2 * tensor for tensor in tensors_in(nest)])
    assert type(twice) is type(nest)
    assert all(torch.equal(a, 2 * b) for a, b in zip(tensors_in(twice), tensors_in(nest), strict=True))


# --- every policy at the blocks of the trained video DiT -------------------------------------------------------------

STEPS = 10
POLICIES: dict[str, dict[str, Any]] = {
    "never": {},
    "uniform": {"every": 3},
    "sencache": {"epsilon": 2.0, "epsilon_start": 2.0},
    "magcache": {"threshold": 0.2},
    "teacache": {"threshold": 0.3, "signal": "modulated_input"},
    "schedule": {"refreshes": (0, 1, 3, 6)},
}
ZERO: dict[str, dict[str, Any]] = {
    "never": {},
    "uniform": {"every": 1},
    "sencache": {"epsilon": 0.0},
    "magcache": {"threshold": 0.0},
    "teacache": {"threshold": 0.0, "signal": "modulated_input"},
    "schedule": {"refreshes": tuple(range(STEPS))},
}


def at_blocks(policy: str, options: dict, **more) -> CachedDenoiser:
    s = subject("video-dit")
    return CachedDenoiser(s.model, policy, profile=s.profile, site="blocks", **options, **more)


@torch.no_grad()
def draw(denoiser, rows: int, seed: int) -> Tensor:
    s = subject("video-dit")
    x, conditioning = s.inputs(rows, seed)
    return sample(denoiser, s.scheduler, x, num_steps=STEPS, **conditioning)


few = settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("policy", list(ZERO))
def test_with_zero_tolerance_it_is_bit_for_bit_the_bare_model(policy):
    @few
    @given(seeds, st.integers(1, 3))
    def holds(seed, rows):
        denoiser = at_blocks(policy, ZERO[policy])
        assert torch.equal(draw(denoiser, rows, seed), draw(subject("video-dit").model, rows, seed))
        assert denoiser.cache_ratio == 0

    holds()


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_batch_of_four_is_four_batches_of_one(policy):
    @few
    @given(seeds)
    def holds(seed):
        s = subject("video-dit")
        together = at_blocks(policy, POLICIES[policy])
        batch = draw(together, 4, seed)
        x, conditioning = s.inputs(4, seed)
        records = together.trace.records
        gaps = [abs(v - e) for r in records for v, e in zip(r.score or (), r.tolerance or (), strict=False)]
        assume(policy != "sencache" or min(gaps) > 1e-4)  # a tie is decided by rounding
        for row in range(4):
            alone = at_blocks(policy, POLICIES[policy])
            one = {key: value[row : row + 1] for key, value in conditioning.items()}
            with torch.no_grad():
                single = sample(alone, s.scheduler, x[row : row + 1], num_steps=STEPS, **one)
            assert [r.evaluated[0] for r in alone.trace.records] == [r.evaluated[row] for r in records]
            torch.testing.assert_close(single[0], batch[row], rtol=1e-3, atol=1e-3)
        assert together.cache_ratio > 0 or policy == "never"

    holds()


@pytest.mark.parametrize("policy", list(POLICIES))
def test_branches_at_the_blocks_do_not_see_each_other(policy):
    s = subject("video-dit")
    both = at_blocks(policy, POLICIES[policy], branches="independent")
    separate = {branch: at_blocks(policy, POLICIES[policy]) for branch in ("cond", "uncond")}
    inputs = {"cond": s.inputs(2, 3)[1], "uncond": s.inputs(2, 4)[1]}
    timesteps = s.scheduler.timesteps(STEPS)
    x = s.inputs(2, 3)[0]
    expected: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for branch, denoiser in separate.items():
            with denoiser.run(timesteps=timesteps):
                expected[branch] = [
                    denoiser(x * (1 - 0.02 * k), torch.full((2,), t), branch=branch, **inputs[branch])[0]
                    for k, t in enumerate(timesteps)
                ]
        with both.run(timesteps=timesteps):
            for k, t in enumerate(timesteps):
                for branch, conditioning in inputs.items():
                    joint = both(x * (1 - 0.02 * k), torch.full((2,), t), branch=branch, **conditioning)[0]
                    assert torch.equal(joint, expected[branch][k])
    assert both.cache_ratio > 0 or policy == "never"


@pytest.mark.parametrize("substitute", load_plugins().substitutes.names())
def test_every_substitute_serves_at_the_blocks(substitute):
    """With the stack's residual as what is predicted: finite, unlike the bare model, exact where nothing is reused.

    One that itself adds what enters is refused.
    """
    if as_substitute(substitute).adds_input:
        with pytest.raises(NeedsError, match="remembers such differences already"):
            at_blocks("uniform", {"every": 2}, substitute=substitute)
        return
    bare = draw(subject("video-dit").model, 2, 5)
    reusing = at_blocks("uniform", {"every": 2}, substitute=substitute)
    result = draw(reusing, 2, 5)
    assert reusing.cache_ratio == 0.5
    assert result.isfinite().all()
    assert 0 < float(row_rms(result - bare).max()) < float(row_rms(bare).max())
    assert torch.equal(draw(at_blocks("never", {}, substitute=substitute), 2, 5), bare)


# --- what a reuse skips ----------------------------------------------------------------------------------------------


def test_what_a_reuse_skips_is_measured_once_for_a_network_however_often_it_is_wrapped(monkeypatch):
    counted = []
    real = flops.CountedFlops.__enter__

    def enter(self):
        counted.append(self)
        return real(self)

    monkeypatch.setattr(flops.CountedFlops, "__enter__", enter)
    model = WAN.build()
    shares = []
    for stack in ("blocks", "blocks", "norm_out"):
        denoiser = CachedDenoiser(model, "uniform:every=2", site=stack)
        with denoiser.run(timesteps=[900.0, 800.0]):
            for t in (900.0, 800.0):
                denoiser(**{**WAN.inputs(1), "timestep": torch.tensor([t])})
        shares.append(denoiser.resolved_site.shares[""])
    assert len(counted) == 2
    assert 0.5 < shares[0] == shares[1] < 1.0
    assert shares[2] < 0.5


class WritesOn(nn.Module):
    """Adds to what its modules return, in place; nothing in it counts as work."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Hardtanh(-9.0, 9.0) for _ in range(3))

    def forward(self, x: Tensor, t: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x += 1.0
        return x


def test_work_is_not_measured_anew_at_every_call_where_nothing_counts(monkeypatch):
    entered = []
    real = flops.CountedFlops.__enter__

    def enter(self):
        entered.append(self)
        return real(self)

    monkeypatch.setattr(flops.CountedFlops, "__enter__", enter)
    cached = CachedDenoiser(WritesOn(), Scripted(), site="layers.*")
    run_points(cached)
    assert len(entered) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_places_returned_is_remembered_as_it_was_before_the_network_wrote_on_it(mode):
    cached = CachedDenoiser(WritesOn(), Scripted({0.25: True}), site="layers.*")
    with mode():
        first, second = run_points(cached)
        again = run_points(cached)
    x = points()[0][0]
    torch.testing.assert_close(first, x + 3.0)
    assert torch.equal(second, first)  # the last module's output at the first point, and 1
    assert all(torch.equal(a, b) for a, b in zip(again, (first, second), strict=True))
    assert [record.evaluated for record in cached.trace.records] == [(True,)] * 3 + [(False,)] * 3


# --- finite rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@given(seed=seeds, places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11), st.integers(0, 3)), max_size=4))
@settings(max_examples=40)
def test_a_row_is_finite_exactly_if_all_of_it_is(dtype, seed, places):
    values = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    odd = (float("nan"), float("inf"), -float("inf"), torch.finfo(dtype).max)  # of the last, sums overflow
    for row, at, which in places:
        values.view(3, 12)[row, at] = odd[which]
    assert finite_rows(values) == torch.isfinite(values).flatten(1).all(dim=1).tolist()
    assert finite_rows(torch.full_like(values, torch.finfo(dtype).max)) == [True] * 3
