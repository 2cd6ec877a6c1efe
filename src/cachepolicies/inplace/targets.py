"""Which modules of a target are its denoisers, and which scheduler they run on."""

from __future__ import annotations

from typing import Any

from torch import nn

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.resolve import as_scheduler

DENOISERS = ("transformer", "transformer_2", "unet")
"""Names of the components of diffusers' pipelines that are called at every step."""


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
    if not found:
        raise SettingsError(
            f"{type(target).__name__} has no component named {', '.join(DENOISERS)} (it has: {', '.join(components)}); "
            "give the module itself"
        )
    return found


def scheduler_of_pipeline(found: Any) -> Scheduler | None:
    """Return a pipeline's scheduler as a `Scheduler`, ``None`` where its class or its settings are not supported."""
    try:
        return as_scheduler(found)
    except SettingsError:  # a pipeline may run on any scheduler; what would follow its time says what it does without
        return None


def _eager(module: nn.Module) -> nn.Module:
    while isinstance(getattr(module, "_orig_mod", None), nn.Module):
        module = module._orig_mod  # type: ignore[assignment]
    return module
