"""Does a profile fit a model and a scheduler? What changes the meaning of its numbers is refused, the rest is noted."""

from __future__ import annotations

import functools
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cachepolicies._errors import ProfileError
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.base import Scheduler

_FAR_ABOVE = 20.0
"""A run that begins this many times above the calibrated range is in other units (t to 1 or to 1000)."""

_PLAIN_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def check_profile(
    profile: Profile,
    *,
    model: object | None = None,
    scheduler: Scheduler | None = None,
    latent_shape: Sequence[int] | None = None,
    num_steps: int | None = None,
    first_t: float | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[str, ...]:
    """Refuse a profile that was calibrated for something else; note the differences that are allowed.

    Only what is given is checked; what a published profile does not say cannot be, which is noted.
    Weights are not hashed here: that would read all of them at every set-up.

    Args:
        profile: the profile to be used.
        model: the denoiser; another class is refused; another configuration, or a function whose class cannot be told,
            is noted.
        scheduler: another family or prediction type is refused; another name or configuration noted.
        latent_shape: of one sample, without the batch; another is noted.
        num_steps: of the run; another is noted.
        first_t: where the run begins; refused where it is in other units than the profile's t, by all appearance: far
            above the calibrated range, or below all of it.
        dtype: of the latents; another is noted.

    Returns:
        The notes, for the trace; empty if everything agrees.

    Raises:
        ProfileError: refused; names both sides.
    """
    notes: list[str] = []
    if model is not None:
        _check_model(profile, model, notes)
    if scheduler is not None:
        _check_scheduler(profile, scheduler, notes)
    if profile.origin == "published":
        _note_unknown(
            profile, notes, scheduler=scheduler, latent_shape=latent_shape, num_steps=num_steps, first_t=first_t
        )
    if latent_shape is not None and profile.latent_shape and tuple(latent_shape) != profile.latent_shape:
        what = "latent shape" if _same_channels(latent_shape, profile.latent_shape) else "latent shape and channels"
        notes.append(
            f"profile {profile.name!r} was calibrated at {what} {profile.latent_shape}, used at {tuple(latent_shape)}"
        )
    if first_t is not None and profile.timesteps:
        low, high = profile.timesteps[-1], profile.timesteps[0]
        if first_t > _FAR_ABOVE * high or first_t < low:
            raise ProfileError(
                f"profile {profile.name!r} was calibrated for t from {high:g} to {low:g}, this run begins at "
                f"t={first_t:g}; calibrate in the units that the denoiser is called with"
            )
    if num_steps is not None and profile.num_steps not in (0, num_steps):
        notes.append(f"profile {profile.name!r} was calibrated with {profile.num_steps} steps, used with {num_steps}")
    if dtype is not None and profile.dtype not in (None, dtype_name(dtype)):
        notes.append(f"profile {profile.name!r} was calibrated in {profile.dtype}, used in {dtype_name(dtype)}")
    return tuple(notes)


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
        elif isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # torch.compile
        elif isinstance(getattr(model, "__self__", None), nn.Module):
            model = model.__self__
        else:
            return model


def _is_anonymous(model: object) -> bool:
    inner = unwrap(model)
    return isinstance(inner, _PLAIN_FUNCTIONS) and not hasattr(inner, "model_class_name")


def _check_model(profile: Profile, model: object, notes: list[str]) -> None:
    found = model_class_name(model)
    if found != profile.model.class_name and _is_anonymous(model):
        # A function may wrap the calibrated class or any other: there is no telling, so it is not refused.
        notes.append(
            f"profile {profile.name!r} was calibrated for the model class {profile.model.class_name!r}; whether the "
            f"function {found!r} wraps one cannot be told. Give it an attribute `model_class_name` to have it checked"
        )
    elif found != profile.model.class_name:
        raise ProfileError(
            f"profile {profile.name!r} was calibrated for the model class {profile.model.class_name!r}, "
            f"this model is {found!r}; use a profile of {found!r}, or calibrate one. A wrapper around the calibrated "
            "model may say so with an attribute `model_class_name`"
        )
    digest = config_hash(model)
    if digest is not None and profile.model.config_hash is not None and digest != profile.model.config_hash:
        notes.append(
            f"profile {profile.name!r} was calibrated for another configuration of {found} "
            f"(config hash {profile.model.config_hash[:12]}, this model {digest[:12]})"
        )


def _note_unknown(profile: Profile, notes: list[str], **given: object) -> None:
    known = {
        "scheduler": profile.scheduler is not None,
        "latent_shape": profile.latent_shape is not None,
        "num_steps": profile.num_steps > 0,
        "first_t": bool(profile.timesteps),
    }
    words = {"latent_shape": "latent shape", "num_steps": "number of steps", "first_t": "timesteps"}
    unknown = [words.get(what, what) for what, value in given.items() if value is not None and not known[what]]
    if unknown:
        notes.append(
            f"profile {profile.name!r} was published without its {', '.join(unknown)}; "
            "whether that fits cannot be checked"
        )


def _check_scheduler(profile: Profile, scheduler: Scheduler, notes: list[str]) -> None:
    family = None if profile.scheduler is None else profile.scheduler.family
    for what, expected, found in (
        ("scheduler family", family, scheduler.family),
        ("prediction type", profile.prediction_type, scheduler.prediction_type),
    ):
        if expected not in (None, found):
            raise ProfileError(
                f"profile {profile.name!r} was calibrated for {what} {expected!r}, scheduler {scheduler.name!r} has "
                f"{found!r}; the numbers do not carry over: use a profile for {found!r}, or calibrate one"
            )
    if profile.scheduler is None:
        return
    if scheduler.name != profile.scheduler.name:
        notes.append(
            f"profile {profile.name!r} was calibrated with scheduler {profile.scheduler.name!r}, "
            f"used with {scheduler.name!r}"
        )
    elif (config := json.loads(json.dumps(dict(scheduler.config), default=str))) != profile.scheduler.config:
        names = sorted(
            name
            for name in {*config, *profile.scheduler.config}
            if config.get(name) != profile.scheduler.config.get(name)
        )
        differences = ", ".join(f"{n} {profile.scheduler.config.get(n)!r} -> {config.get(n)!r}" for n in names)
        notes.append(f"profile {profile.name!r} was calibrated with other settings of {scheduler.name}: {differences}")


def _same_channels(one: Sequence[int], other: Sequence[int]) -> bool:
    return bool(one) and bool(other) and one[0] == other[0]
