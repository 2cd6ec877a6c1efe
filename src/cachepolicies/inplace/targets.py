"""Which modules of a target are its denoisers, and which scheduler they run on."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.foreign import inside_compiled
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.resolve import as_scheduler

DENOISERS = ("transformer", "transformer_2", "unconditional_transformer", "unet")
"""Names of the components of diffusers' pipelines that are called at every step."""

_HOMES = ("diffusers.models.transformers.", "diffusers.models.unets.", "diffusers.models.controlnets.")
"""Packages whose classes may be called at every step under another name."""


def denoisers_of(target: Any) -> dict[str, nn.Module]:
    """Return the denoisers of a target by name: a module itself, or those of a diffusers pipeline.

    Compiled modules are looked through: the eager module inside is what runs.

    Raises:
        SettingsError: the target is neither, or a pipeline without a denoiser.
    """
    if isinstance(target, nn.Module):
        module = _eager(target)
        return {type(module).__name__: module}
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise SettingsError(
            f"target is a {type(target).__name__}; give a torch.nn.Module or a diffusers pipeline. Any other callable "
            "is wrapped: cachepolicies.CachedDenoiser(model, ...)"
        )
    found = {name: _eager(components[name]) for name in DENOISERS if isinstance(components.get(name), nn.Module)}
    if not found and getattr(target, "scheduler", None) is not None:
        # One of another name that runs on the pipeline's own scheduler, as Stable Cascade's `prior` or `decoder`.
        others = {name: module for name, module in _others(components).items() if "controlnet" not in name}
        found = others if len(others) == 1 else {}
    if not found:
        raise SettingsError(
            f"{type(target).__name__} has no component named {', '.join(DENOISERS)} (it has: {', '.join(components)}); "
            "give the module itself"
        )
    return found


def left_alone(target: Any, served: Iterable[str]) -> dict[str, nn.Module]:
    """Return the components that take a noise level as well, and are not among those served, by name.

    A ControlNet is one: it runs at every step, whatever the cache does.
    """
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        return {}
    return {name: module for name, module in _others(components).items() if name not in set(served)}


def _others(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the components of the kinds of networks that denoise, whatever their names."""
    found = {}
    for name, component in components.items():
        module = _eager(component) if isinstance(component, nn.Module) else None
        if module is None or not any(kind.__module__.startswith(_HOMES) for kind in type(module).__mro__):
            continue
        if any("timestep" in parameter for parameter in inspect.signature(type(module).forward).parameters):
            found[name] = module
    return found


def scheduler_of_pipeline(found: Any) -> Scheduler | None:
    """Return a pipeline's scheduler as a `Scheduler`, ``None`` where its class or its settings are not supported."""
    try:
        return as_scheduler(found)
    except SettingsError:  # a pipeline may run on any scheduler; what would follow its time says what it does without
        return None


def _eager(module: nn.Module) -> nn.Module:
    while (inside := inside_compiled(module)) is not None:
        module = inside
    return module
