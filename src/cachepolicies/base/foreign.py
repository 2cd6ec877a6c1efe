"""What is used of torch, diffusers and accelerate beyond what they document, all of it, in one place.

None of it is promised by its authors. ``tests/test_foreign.py`` has a test for each, which says in words what is gone
and what leans on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

REGISTRY = "_diffusers_hook"
"""Attribute of a module in which diffusers keeps its hooks."""


def writes_so_far(tensor: Tensor) -> int:
    """Return how often a tensor was written on (``Tensor._version``); 0 in inference mode, where nobody counts."""
    return 0 if tensor.is_inference() else tensor._version


def inside_compiled(module: object) -> nn.Module | None:
    """Return the module inside of one that ``torch.compile`` returned (``_orig_mod``), ``None`` for any other."""
    found = getattr(module, "_orig_mod", None)
    return found if isinstance(module, nn.Module) and isinstance(found, nn.Module) else None


def is_compiled_by_itself(module: nn.Module) -> bool:
    """Return whether ``module.compile()`` was called (``_compiled_call_impl``)."""
    return getattr(module, "_compiled_call_impl", None) is not None


def frame_evaluation() -> Callable[[Any], Any]:
    """Return the function by which ``torch.compile`` sets what compiles this thread's frames, and tells what did.

    ``torch._C._dynamo.eval_frame.set_eval_frame``: given ``None``, frames run as they are.
    """
    import torch._C._dynamo as dynamo

    found: Callable[[Any], Any] = dynamo.eval_frame.set_eval_frame
    return found


def hooks_of(module: nn.Module) -> Any:
    """Return diffusers' registry of the hooks on a module, ``None`` where there is none."""
    return getattr(module, REGISTRY, None)


def cache_of_diffusers(module: nn.Module) -> str | None:
    """Return the class of the settings of diffusers' own cache on a module (``_cache_config``), ``None`` for none."""
    if not getattr(module, "is_cache_enabled", False):
        return None
    return type(getattr(module, "_cache_config", None)).__name__


def context_parallel_settings(module: object) -> Any:
    """Return the settings of diffusers' context parallelism on a model (``_parallel_config``), ``None`` for none."""
    return getattr(getattr(module, "_parallel_config", None), "context_parallel_config", None)


def is_accelerated(module: nn.Module) -> bool:
    """Return whether accelerate has put a forward of its own around the module's (``_hf_hook``, ``_old_forward``)."""
    return hasattr(module, "_hf_hook") and hasattr(module, "_old_forward")


def order_of_hooks(registry: Any) -> list[str]:
    """Return the names of a registry's hooks, innermost first (``_hook_order``)."""
    found: list[str] = registry._hook_order
    return found


def references_of_hooks(registry: Any) -> list[Any]:
    """Return what diffusers keeps of every hook's place in the chain (``_fn_refs``), in the same order."""
    found: list[Any] = registry._fn_refs
    return found


def forget_children(registry: Any) -> None:
    """Have a registry look for the hooks of its submodules again, which it remembers."""
    registry.invalidate_child_registries_cache()
