"""Caching in place beside what else diffusers puts on a model: offloading, casting, LoRA, saving, checkpointing."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from attrs import field, frozen
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from cachepolicies import RunError, disable, enable
from cachepolicies.policies import Never
from scripted import Scripted
from stack_by_hand import ByHand, blocks_of, calls_of
from tiny_models import TINY, level, moved
from tiny_pipelines import PIPELINES

MODELS = ("WanTransformer3DModel", "FluxTransformer2DModel", "LTXVideoTransformer3DModel")
PIPES = ("wan", "flux", "ltx")
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*nothing was reused:cachepolicies.CacheWarning",
    "ignore:.*too few to gain:cachepolicies.CacheWarning",
    "ignore:User provided device_type of 'cuda':UserWarning",
    "ignore::FutureWarning:diffusers",
)


# --- the features ----------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Feature:
    """Something that changes how a module runs, and how it is taken off again (``None``: it cannot be)."""

    name: str
    apply: Callable[[Any], object]
    undo: Callable[[Any], object] | None = field(default=None)


def group_offload(kind: str, **settings):
    def apply(model: nn.Module) -> None:
        apply_group_offloading(
            model, onload_device=CPU, offload_device=CPU, offload_type=kind, num_blocks_per_group=1, **settings
        )

    return apply


def remove_group_offload(model: nn.Module) -> None:
    for module in model.modules():
        if "_diffusers_hook" in vars(module):
            vars(module)["_diffusers_hook"].remove_hook("group_offloading", recurse=False)


def cast(dtype: torch.dtype):
    return lambda model: model.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)


def lora_config() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "proj_out"], init_lora_weights=False)


def add_lora(model: Any, name: str = "first", seed: int = 5) -> None:
    """Add an adapter with weights that do something, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(lora_config(), adapter_name=name)
    model.requires_grad_(False)


def train(model: Any) -> None:
    model.train()
    model.requires_grad_(True)
    model.enable_gradient_checkpointing()


def stop_training(model: Any) -> None:
    model.disable_gradient_checkpointing()
    model.requires_grad_(False)
    model.eval()


def remove_accelerate(model: nn.Module) -> None:
    remove_hook_from_module(model, recurse=True)


FEATURES = (
    Feature("group offload, blocks", group_offload("block_level"), remove_group_offload),
    Feature("group offload, leaves", group_offload("leaf_level"), remove_group_offload),
    Feature("casting from float8", cast(torch.float8_e4m3fn)),
    Feature("casting from float16", cast(torch.float16)),
    Feature("model offload", lambda model: accelerate.cpu_offload_with_hook(model, CPU), remove_accelerate),
    Feature("sequential offload", lambda model: accelerate.cpu_offload(model, CPU), remove_accelerate),
    Feature("lora", add_lora, lambda model: model.unload_lora()),
    Feature("checkpointing", train, stop_training),
)
features = pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
models = pytest.mark.parametrize("key", MODELS)
orders = pytest.mark.parametrize("order", ["feature first", "cache first"])


def state(model: nn.Module) -> dict:
    """What could be left behind: classes, attributes, hooks, and whose function the forward is."""
    found = {}
    for name, module in model.named_modules():
        registry = vars(module).get("_diffusers_hook")
        forward = module.forward
        found[name] = (
            type(module),
            sorted(vars(module)),
            None if registry is None else tuple(registry.hooks),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            getattr(forward, "__func__", type(forward)),
        )
    return found


def same(a, b) -> bool:
    return torch.equal(a[0], b[0])


# --- one model, every feature ----------------------------------------------------------------------------------------


@models
@features
@orders
def test_with_a_feature_on_never_is_bit_for_bit_and_disabling_restores(key, feature, order):
    tiny = TINY[key]
    now = tiny.inputs(2)
    bare = tiny.build()
    before = state(bare)
    feature.apply(bare)
    featured = state(bare)
    want = bare(**now)

    model = tiny.build()
    if order == "feature first":
        feature.apply(model)
        on = enable(model, Never())
    else:
        on = enable(model, Never())
        feature.apply(model)
    calls, handles = calls_of(blocks_of(model))
    assert same(model(**now), want)
    assert on.trace.calls == 1, "the call did not go through the cache"
    assert len(calls) >= len(blocks_of(model))
    for handle in handles:
        handle.remove()

    disable(model)
    assert state(model) == featured
    assert same(model(**now), want)
    assert on.trace.calls == 1
    if feature.undo is not None:
        feature.undo(bare)
        feature.undo(model)
        assert state(model) == state(bare)
        assert before.keys() == state(model).keys()
        assert same(model(**now), tiny.build()(**now))


@models
@pytest.mark.parametrize("feature", [f for f in FEATURES if f.undo is not None], ids=lambda f: f.name)
@orders
def test_a_feature_that_is_taken_off_while_enabled_leaves_the_cache_on(key, feature, order):
    tiny = TINY[key]
    now = tiny.inputs(1)
    later = moved(tiny, now)
    plain = tiny.build()
    wanted = [plain(**now), plain(**later)]

    model = tiny.build()
    before = state(model)
    if order == "feature first":
        feature.apply(model)
    on = enable(model, Never())
    if order == "cache first":
        feature.apply(model)
    with on.run(timesteps=[level(tiny, now), level(tiny, later)]):
        model(**now)
        feature.undo(model)
        assert same(model(**later), wanted[1])
    assert on.trace.calls == 2, "taking the feature off took the cache off"
    disable(model)
    assert same(model(**now), wanted[0])
    bare = tiny.build()
    feature.apply(bare)
    feature.undo(bare)
    assert {name: kept[0] for name, kept in state(model).items()} == {name: kept[0] for name, kept in before.items()}
    if order == "feature first":
        assert state(model) == state(bare)


@models
@features
@orders
def test_with_a_feature_on_a_reuse_is_the_head_of_input_plus_residual(key, feature, order):
    tiny = TINY[key]
    now = tiny.inputs(2)
    later = moved(tiny, now)
    bare = tiny.build()
    feature.apply(bare)
    hand = ByHand(bare)
    hand.run(now, replace=False)
    want = hand.run(later, replace=True)[0]
    fresh = bare(**later)[0]

    model = tiny.build()
    if order == "feature first":
        feature.apply(model)
    on = enable(model, Scripted({level(tiny, later): True}))
    if order == "cache first":
        feature.apply(model)
    calls, handles = calls_of(blocks_of(model))
    with on, on.run(timesteps=[level(tiny, now), level(tiny, later)]):
        model(**now)
        evaluated = len(calls)
        reused = model(**later)[0]
    assert evaluated >= len(blocks_of(model))
    assert len(calls) == evaluated, "a block ran in a reuse"
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(reused, want, atol=2e-6, rtol=2e-6)
    assert not torch.allclose(reused, fresh, atol=1e-5)


@features
def test_with_a_feature_on_rows_may_part(feature):
    """The forward is broken off in its middle, and run on parts of the batch."""
    tiny = TINY["FluxTransformer2DModel"]
    now = tiny.inputs(3)
    later = moved(tiny, now)
    outputs = []
    for script in ((True, False, True), True, False):
        model = tiny.build()
        feature.apply(model)
        on = enable(model, Scripted({level(tiny, later): script}))
        with on, on.run(timesteps=[level(tiny, now), level(tiny, later)]):
            model(**now)
            outputs.append(model(**later)[0])
    parted, reused, fresh = outputs
    torch.testing.assert_close(parted[[0, 2]], reused[[0, 2]], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(parted[1], fresh[1], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(parted[0], fresh[0], atol=1e-5)


@models
@pytest.mark.parametrize("kind", ["block_level", "leaf_level", "sequential"])
def test_signals_see_the_weights_of_an_offloaded_block(key, kind, tmp_path):
    """What is offloaded is no number: a signal that were computed with it would not be equal."""
    tiny = TINY[key]
    now = tiny.inputs(2)
    signals = ("modulated_input", "timestep_embedding")
    seen, outputs = [], []
    for offloaded in (False, True):
        model = tiny.build()
        if offloaded and kind == "sequential":
            accelerate.cpu_offload(model, CPU)
            assert {p.device.type for p in model.parameters()} == {"meta"}
        elif offloaded:
            group_offload(kind, offload_to_disk_path=str(tmp_path))(model)
            for parameter in model.parameters():
                parameter.data.fill_(float("nan"))
        policy = Scripted(signals=signals)
        with enable(model, policy):
            outputs.append(model(**now))
        seen.append(policy.seen[level(tiny, now)])
        if offloaded and kind == "sequential":
            assert {p.device.type for p in model.parameters()} == {"meta"}
    assert same(*outputs)
    for name in signals:
        assert torch.equal(seen[0][name], seen[1][name])
        assert seen[0][name].abs().max() > 0


@pytest.mark.parametrize("key", MODELS)
def test_checkpointing_gives_the_gradients_of_the_bare_model(key):
    """In the backward pass the blocks run again, when the call that had gates on them is over."""
    tiny = TINY[key]
    now = tiny.inputs(2)
    gradients = []
    for cached in (False, True):
        model = tiny.build()
        train(model)
        on = enable(model, Never()) if cached else None
        model(**now)[0].square().mean().backward()
        assert on is None or on.trace.calls == 1
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# --- the chain of diffusers' hooks -----------------------------------------------------------------------------------


class Doubles(ModelHook):
    """A hook with a forward of its own."""

    def new_forward(self, module, *args, **kwargs):
        return tuple(2 * tensor for tensor in self.fn_ref.original_forward(*args, return_dict=False, **kwargs))


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@orders
def test_group_offloading_may_be_taken_off_and_put_on_again(kind, order):
    """diffusers does so whenever a LoRA is loaded or deleted."""
    tiny = TINY["FluxTransformer2DModel"]
    points = [tiny.inputs(1), moved(tiny, tiny.inputs(1)), moved(tiny, moved(tiny, tiny.inputs(1)), seed=3)]
    model = tiny.build()
    wanted = [model(**p) for p in points]
    if order == "feature first":
        group_offload(kind)(model)
    on = enable(model, Never())
    if order == "cache first":
        group_offload(kind)(model)
    with on.run(timesteps=[level(tiny, p) for p in points]):
        for point, want in zip(points, wanted, strict=True):
            assert same(model(**point), want)
            _maybe_remove_and_reapply_group_offloading(model)
    assert on.trace.calls == 3
    disable(model)
    hooks = [kept[2] for kept in state(model).values() if kept[2]]
    assert len(hooks) > 1
    assert set(hooks) == {("group_offloading",)}


@pytest.mark.parametrize("inner", [True, False])
def test_hooks_with_a_forward_of_their_own_stay_in_the_chain(inner):
    tiny = TINY["WanTransformer3DModel"]
    now = tiny.inputs(1)
    model = tiny.build()
    twice = 2 * model(**now)[0]
    registry = HookRegistry.check_if_exists_or_initialize(model)
    if inner:
        registry.register_hook(Doubles(), "doubles")
    on = enable(model, Never())
    if not inner:
        registry.register_hook(Doubles(), "doubles")
    assert torch.equal(model(**now)[0], twice)
    assert on.trace.calls == 1
    disable(model)
    assert torch.equal(model(**now)[0], twice)
    registry.remove_hook("doubles")
    assert torch.equal(2 * model(**now)[0], twice)


def test_a_hook_inside_may_be_removed_while_enabled():
    tiny = TINY["WanTransformer3DModel"]
    now = tiny.inputs(1)
    model = tiny.build()
    want = model(**now)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    registry.register_hook(Doubles(), "doubles")
    on = enable(model, Never())
    registry.remove_hook("doubles")
    assert same(model(**now), want)
    assert on.trace.calls == 1
    disable(model)
    assert same(model(**now), want)


def test_a_forward_replaced_by_others_is_named_at_disabling():
    tiny = TINY["WanTransformer3DModel"]
    model = tiny.build()
    enable(model, Never())
    ours, model.forward = model.forward, lambda *args, **kwargs: None
    with pytest.raises(RunError, match="was replaced after the cache was enabled"):
        disable(model)
    model.forward = ours
    disable(model)
    assert "forward" not in vars(model)


# --- contexts --------------------------------------------------------------------------------------------------------


@models
def test_a_context_restores_also_after_an_exception(key):
    tiny = TINY[key]
    model = tiny.build()
    before = state(model)
    with enable(model, Never()) as on:
        model(**tiny.inputs(1))
        assert on.trace.calls == 1
        assert state(model) != before
    assert state(model) == before
    with pytest.raises(KeyError, match="thrown"), enable(model, Never()):
        raise KeyError("thrown")
    assert state(model) == before
    with pytest.raises(RunError, match="not enabled"):
        disable(model)


@models
def test_an_exception_in_a_block_leaves_nothing_behind(key):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(1)
    want = model(**now)

    def fail(module, args):
        raise KeyError("in a block")

    with enable(model, Scripted()):
        inside = state(model)
        handle = blocks_of(model)[1].register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="in a block"):
            model(**now)
        handle.remove()
        assert state(model) == inside
        assert same(model(**now), want)


# --- saving and copying ----------------------------------------------------------------------------------------------


@models
@orders
def test_saving_while_enabled_writes_the_same_files(key, order, tmp_path):
    tiny = TINY[key]
    model: Any = tiny.build()
    model.save_pretrained(tmp_path / "bare")
    with enable(model, Never()):
        if order == "cache first":
            model(**tiny.inputs(1))
        model.save_pretrained(tmp_path / "enabled")
        assert model.state_dict().keys() == tiny.build().state_dict().keys()
        model.load_state_dict(tiny.build().state_dict())
    names = sorted(path.name for path in (tmp_path / "bare").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "enabled").iterdir())
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("bare", "enabled")]
    assert configs[0] == configs[1]
    assert configs[1]["_class_name"] == type(model).__name__
    weights = [load_file(tmp_path / folder / names[-1]) for folder in ("bare", "enabled")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    again = type(model).from_pretrained(tmp_path / "enabled").eval().requires_grad_(False)
    torch.testing.assert_close(again(**tiny.inputs(1))[0], model(**tiny.inputs(1))[0])


def test_a_copy_of_an_enabled_model_is_refused_when_it_is_called():
    """Its forward would be the original's: diffusers' hooks hold the module that they were made for."""
    tiny = TINY["FluxTransformer2DModel"]
    model = tiny.build()
    now = tiny.inputs(1)
    with enable(model, Never()) as on:
        twin = copy.deepcopy(model)
        with pytest.raises(RunError, match=r"was copied while a cache was enabled.*disable the cache, copy"):
            twin(**now)
        model(**now)
        assert on.trace.calls == 1
    twin = copy.deepcopy(model)
    with enable(twin, Never()) as on:
        assert same(twin(**now), model(**now))
        assert on.trace.calls == 1
    file = io.BytesIO()
    torch.save(model, file)  # as before: nothing is left that could not be pickled


# --- LoRA and pipelines ----------------------------------------------------------------------------------------------


def lora_weights(name: str, seed: int) -> dict:
    """Weights as a hub has them, for a pipeline's ``load_lora_weights``."""
    twin = PIPELINES[name].build().transformer
    add_lora(twin, seed=seed)
    return {f"transformer.{key}": value for key, value in get_peft_model_state_dict(twin, adapter_name="first").items()}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(("name", "offload"), [("wan", "leaf_level"), ("flux", "block_level"), ("ltx", None)])
def test_loras_come_and_go_in_an_enabled_pipeline(name, offload):
    tiny = PIPELINES[name]
    weights = {"one": lora_weights(name, 5), "two": lora_weights(name, 6)}
    steps = {
        "load": lambda p: p.load_lora_weights(dict(weights["one"]), adapter_name="one"),
        "scale": lambda p: p.set_adapters("one", 0.3),
        "load another": lambda p: p.load_lora_weights(dict(weights["two"]), adapter_name="two"),
        "both": lambda p: p.set_adapters(["one", "two"], [0.5, 0.7]),
        "disable": lambda p: p.disable_lora(),
        "enable": lambda p: p.enable_lora(),
        "delete": lambda p: p.delete_adapters("two"),
        "fuse": lambda p: p.fuse_lora(),
        "unfuse": lambda p: p.unfuse_lora(),
        "unload": lambda p: p.unload_lora_weights(),
    }
    bare, cached, reusing = (tiny.build() for _ in range(3))
    for pipe in (bare, cached, reusing):
        if offload:
            group_offload(offload)(pipe.transformer)
    on = enable(cached, Never())
    reuse = enable(reusing, "uniform:every=2")
    results = {}
    for what, change in steps.items():
        for pipe in (bare, cached, reusing):
            change(pipe)
        results[what] = tiny.call(bare, steps=3)
        assert torch.equal(tiny.call(cached, steps=3), results[what]), what
        calls = 3 * max(1, 0 if tiny.doubled else len(tiny.contexts))
        assert on.trace.calls == calls, what
        assert tiny.call(reusing, steps=3).isfinite().all()
        assert reuse.trace.cache_ratio > 0, what
    assert not torch.equal(results["load"], results["scale"])
    assert not torch.equal(results["both"], results["disable"])
    disable(cached)
    disable(reusing)
    for pipe in (cached, reusing):
        assert torch.equal(tiny.call(pipe, steps=3), results["unload"])
        assert state(pipe.transformer) == state(bare.transformer)


@pytest.mark.parametrize("name", PIPES)
@orders
def test_model_offload_of_a_pipeline_keeps_the_cache_on(name, order):
    """accelerate's hooks are removed and added again at the end of every call of a pipeline."""
    tiny = PIPELINES[name]
    want = tiny.call(tiny.build(), steps=4)
    pipe = tiny.build()
    if order == "feature first":
        pipe.enable_model_cpu_offload(device="cpu")
    on = enable(pipe, "uniform:every=2")
    if order == "cache first":
        pipe.enable_model_cpu_offload(device="cpu")
    calls, handles = calls_of(blocks_of(pipe.transformer))
    counts = []
    for _ in range(3):
        tiny.call(pipe, steps=4)
        counts.append(len(calls))
        calls.clear()
        assert on.trace.cache_ratio > 0
    assert counts[0] == counts[1] == counts[2] > 0
    for handle in handles:
        handle.remove()
    disable(pipe)
    for _ in range(2):
        assert torch.equal(tiny.call(pipe, steps=4), want)
    pipe.remove_all_hooks()
    assert torch.equal(tiny.call(pipe, steps=4), want)
    assert "_diffusers_hook" not in vars(pipe.transformer) or not pipe.transformer._diffusers_hook.hooks
