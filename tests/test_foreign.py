"""What the library uses of torch, diffusers and accelerate beyond what they document is still there, and works.

Each test says in words what is gone, and what leans on it; see `cachepolicies.base.foreign`.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, HookFunctionReference, StateManager
from torch import nn

from cachepolicies.base import foreign
from tiny_models import TINY

SOURCE = Path(foreign.__file__).resolve().parents[1]


def gone(what: str, leans: str) -> str:
    return f"{what}; {leans}: see cachepolicies.base.foreign"


def test_tensors_count_how_often_they_were_written_on():
    x = torch.zeros(2)
    before = foreign.writes_so_far(x)
    x.add_(1.0)
    after = foreign.writes_so_far(x)
    assert after > before, gone("Tensor._version counts no more", "changed conditioning and latents are told by it")
    with torch.inference_mode():
        assert foreign.writes_so_far(torch.zeros(2)) == 0


def test_a_compiled_module_names_the_one_inside():
    inner = nn.Linear(2, 2)
    found = foreign.inside_compiled(torch.compile(inner))
    assert found is inner, gone("torch.compile's module has no _orig_mod", "sites look for blocks in it")
    assert foreign.inside_compiled(inner) is None
    assert foreign.inside_compiled(3) is None


def test_a_module_says_that_it_is_compiled_by_itself():
    module = nn.Linear(2, 2)
    assert not foreign.is_compiled_by_itself(module)
    module.compile()
    said = gone("Module.compile sets no _compiled_call_impl", "compiled blocks get all gates or none by it")
    assert foreign.is_compiled_by_itself(module), said


def test_frame_evaluation_can_be_set_and_says_what_was_set():
    set_eval_frame = foreign.frame_evaluation()
    said = gone("set_eval_frame(None) does not return what was set", "the cache stays out of graphs by it")
    assert set_eval_frame(None) is None, said


def test_torch_dispatches_operators_to_a_mode():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1.0
    assert seen, gone("TorchDispatchMode sees no operators", "FLOPs are counted by it")


def test_diffusers_keeps_hooks_in_an_attribute_in_order():
    module = nn.Linear(2, 2)
    assert foreign.hooks_of(module) is None
    registry = HookRegistry.check_if_exists_or_initialize(module)
    said = gone(f"diffusers keeps no {foreign.REGISTRY}", "enable finds its own hook by it")
    assert foreign.hooks_of(module) is registry, said
    for name in ("one", "two"):
        registry.register_hook(ModelHook(), name)
    said = gone("HookRegistry._hook_order is not the order of the hooks", "disable takes the hook out by it")
    assert foreign.order_of_hooks(registry) == ["one", "two"], said
    references = foreign.references_of_hooks(registry)
    said = gone("HookRegistry._fn_refs has no reference for each hook", "disable puts the chain together again by it")
    assert len(references) == 2, said
    assert all(isinstance(each, HookFunctionReference) for each in references), said
    assert all(hasattr(each, name) for each in references for name in ("original_forward", "forward")), said
    foreign.forget_children(registry)


def test_diffusers_hands_a_context_to_stateful_hooks():
    class Contexts(StateManager):
        def set_context(self, context):
            told.append(getattr(context, "name", context))

    class Hook(ModelHook):
        _is_stateful = True

        def __init__(self):
            super().__init__()
            self.states = Contexts(BaseState)

    told: list[Any] = []
    model: Any = TINY["WanTransformer3DModel"].build()
    HookRegistry.check_if_exists_or_initialize(model).register_hook(Hook(), "one")
    with model.cache_context("cond"):
        pass
    said = gone("cache_context calls no StateManager.set_context", "branches are named by it")
    assert told == ["cond", None], said


def test_diffusers_says_which_cache_is_enabled():
    from diffusers import FirstBlockCacheConfig

    model: Any = TINY["WanTransformer3DModel"].build()
    assert foreign.cache_of_diffusers(model) is None
    model.enable_cache(FirstBlockCacheConfig())
    said = gone("a model does not keep _cache_config", "a second cache on it is refused by it")
    assert foreign.cache_of_diffusers(model) == "FirstBlockCacheConfig", said


def test_diffusers_keeps_how_a_model_is_shared_by_processes():
    model: Any = TINY["WanTransformer3DModel"].build()
    if not hasattr(model, "enable_parallelism"):
        pytest.skip("this diffusers shares no model")
    said = gone("enable_parallelism writes no _parallel_config", "a cache on shared tokens is refused by it")
    assert "_parallel_config" in inspect.getsource(type(model).enable_parallelism), said
    assert foreign.context_parallel_settings(model) is None


def test_accelerate_puts_its_forward_around_the_modules():
    hooks = pytest.importorskip("accelerate.hooks")
    module = nn.Linear(2, 2)
    assert not foreign.is_accelerated(module)
    hooks.add_hook_to_module(module, hooks.ModelHook())
    said = gone("accelerate sets no _hf_hook and _old_forward", "enable goes inside of its forward by them")
    assert foreign.is_accelerated(module), said


PRIVATE = re.compile(r"^_(orig_mod|compiled_call_impl|diffusers_hook|cache_config|parallel_config|hook_order|fn_refs)$")
PRIVATE_IMPORT = re.compile(r"^(torch|diffusers|accelerate)(\.\w+)*\._\w+")


def test_nothing_private_is_used_anywhere_else():
    """But for what only stands in a class of theirs that is derived from, and the base of `TorchDispatchMode`."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name == "foreign.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr):
                found.append(f"{path.name}: .{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE.match(node.value):
                found.append(f"{path.name}: {node.value!r}")
            elif isinstance(node, ast.ImportFrom) and PRIVATE_IMPORT.match(node.module or ""):
                found.append(f"{path.name}: from {node.module}")
    assert found == ["flops.py: from torch.utils._python_dispatch"]
