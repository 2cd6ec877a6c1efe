"""Does a profile fit a model and a scheduler? What changes the meaning of its numbers is refused, the rest is noted."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from cachepolicies.base.errors import ProfileError
from cachepolicies.base.models import config_hash, dtype_name, is_plain_function, model_class_name
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.profiles.measured import Profile

_FAR_ABOVE = 20.0
"""A run that begins this many times above the calibrated range is in other units (t to 1 or to 1000)."""


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


def _check_model(profile: Profile, model: object, notes: list[str]) -> None:
    found = model_class_name(model)
    if found != profile.model.class_name and is_plain_function(model):
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
