"""What a model is called, and what identifies its configuration, its weights and its inputs."""

from __future__ import annotations

import functools
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cachepolicies.base.foreign import inside_compiled

_MOST_WRAPPERS = 8

_PLAIN_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def model_class_name(model: object) -> str:
    """Return the name that a profile knows a model by.

    A wrapper (a guided denoiser, say) names the network it wraps with a string attribute ``model_class_name``. Compiled
    modules, partials and bound methods of a module are looked through; other callables go by their ``__qualname__``.
    """
    inner = unwrap(model)
    declared = getattr(inner, "model_class_name", None)
    if isinstance(declared, str) and declared:
        return declared
    if not isinstance(inner, nn.Module):
        qualname = getattr(inner, "__qualname__", None)
        if isinstance(qualname, str):
            return qualname
    return type(inner).__name__


def config_hash(model: object) -> str | None:
    """Return the sha256 of a model's ``.config`` as sorted JSON; None if it has none.

    Keys that begin with an underscore are left out: library version and path do not change what a model computes.
    """
    config = getattr(unwrap(model), "config", None)
    to_dict = getattr(config, "to_dict", None)
    if not isinstance(config, Mapping) and callable(to_dict):
        config = to_dict()
    if not isinstance(config, Mapping):
        return None
    plain = {str(key): value for key, value in config.items() if not str(key).startswith("_")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def weights_hash(model: object) -> str | None:
    """Return the sha256 of a model's ``state_dict`` (names, dtypes, shapes, bytes, by name); None if it has none."""
    state_dict = getattr(unwrap(model), "state_dict", None)
    state = state_dict() if callable(state_dict) else None
    if not isinstance(state, Mapping):
        return None
    digest = hashlib.sha256()
    for name in sorted(state):
        if isinstance(state[name], Tensor):
            digest.update(name.encode())
            digest_tensor(digest, state[name])
    return digest.hexdigest()


def digest_tensor(digest: Any, tensor: Tensor) -> None:
    """Feed dtype, shape and bytes of a tensor into a hashlib object."""
    digest.update(f"{dtype_name(tensor.dtype)}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return ``"float32"`` for ``torch.float32`` and for ``"torch.float32"``."""
    return str(dtype).removeprefix("torch.")


def unwrap(model: Any) -> Any:
    """Return what a compiled module, a partial or a bound method of a module stands for; anything else as it is."""
    while True:
        if isinstance(model, functools.partial):
            model = model.func
        elif (compiled := inside_compiled(model)) is not None:
            model = compiled
        elif isinstance(getattr(model, "__self__", None), nn.Module):
            model = model.__self__
        else:
            return model


def network_inside(model: object) -> nn.Module | None:
    """Return the network that a denoiser calls, ``None`` where there is no telling.

    A module is its own network, unless it names another by an attribute ``network``, as a wrapper does that is itself a
    module; compiled modules, partials and bound methods are looked through. Wrappers around wrappers are followed.
    """
    found, seen = None, 0
    inner = unwrap(model)
    while inner is not None and seen < _MOST_WRAPPERS:
        found = inner if isinstance(inner, nn.Module) else found
        inner, seen = unwrap(getattr(inner, "network", None)), seen + 1
    return found


def is_plain_function(model: object) -> bool:
    """Return whether a model is a function that does not say, by ``model_class_name``, what it wraps."""
    inner = unwrap(model)
    return isinstance(inner, _PLAIN_FUNCTIONS) and not hasattr(inner, "model_class_name")
