"""The settings of a diffusers scheduler: copied, checked, and made into new instances. Does not import diffusers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.contracts.scheduler import PredictionType
from cachepolicies.schedulers.diffusers_traits import SUPPORTED, TRAITS, DiffusersTraits

OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""With one of these, t is found from sigma by interpolating log(sigma)."""

PREDICTION_TYPES: Mapping[str, PredictionType] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
"""Diffusers' prediction types in our words."""

_MOST_TRAINED = 100_000
"""Trained noise levels: the schedulers keep tables with an entry for each."""

# What diffusers raises on settings that do not go together.
_DIFFUSERS_ERRORS = (ValueError, TypeError, NotImplementedError, ImportError, AssertionError, ArithmeticError)


@frozen
class Blueprint:
    """A copy of a diffusers scheduler's settings, from which every run builds its own instance.

    Attributes:
        scheduler_class: the diffusers class.
        settings: every argument of its constructor.
        shift: what ``set_shift`` was given after construction, which is not in the settings; otherwise ``None``.
    """

    scheduler_class: type[Any]
    settings: Mapping[str, Any] = field(hash=False)
    shift: float | None = None

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.scheduler_class.__name__

    @property
    def traits(self) -> DiffusersTraits:
        """What the table says of the class."""
        return TRAITS[self.name]

    def build(self) -> Any:
        """Return a new diffusers scheduler.

        Raises:
            SettingsError: diffusers refuses the settings.
        """
        try:
            scheduler = self.scheduler_class(**copy.deepcopy(dict(self.settings)))
        except _DIFFUSERS_ERRORS as error:
            raise SettingsError(f"{self.name}: diffusers refuses the settings: {error}") from error
        if self.shift is not None:
            scheduler.set_shift(self.shift)
        return scheduler


def blueprint_of(scheduler: Any) -> Blueprint:
    """Return the blueprint of an instance of diffusers, or of a class with its default settings.

    Raises:
        SettingsError: the class is none of diffusers', or is not supported.
    """
    if isinstance(scheduler, Blueprint):
        return scheduler
    scheduler_class = scheduler if isinstance(scheduler, type) else type(scheduler)
    name = scheduler_class.__name__
    if name not in TRAITS or not scheduler_class.__module__.startswith("diffusers."):
        raise SettingsError(
            f"{scheduler_class.__module__}.{name} is not a diffusers scheduler that is supported; "
            f"supported: {', '.join(SUPPORTED)}. For another one write a subclass of cachepolicies' Scheduler"
        )
    parameters = parameters_of(scheduler_class)
    if scheduler is scheduler_class:
        return Blueprint(scheduler_class, {key: plain_setting(default) for key, default in parameters.items()})
    # Every value is passed on, also those that diffusers' from_config would drop because the caller's instance had
    # the default once. Keys of other classes, kept by diffusers for switching between them, mean nothing here.
    settings = {key: plain_setting(value) for key, value in scheduler.config.items() if key in parameters}
    shift = getattr(scheduler, "_shift", None)
    return Blueprint(scheduler_class, settings, None if shift == settings.get("shift") else shift)


def parameters_of(scheduler_class: type[Any]) -> dict[str, Any]:
    """Return the arguments of the constructor with their defaults."""
    found = inspect.signature(scheduler_class).parameters.values()
    return {one.name: one.default for one in found if one.kind is not inspect.Parameter.VAR_KEYWORD}


def plain_setting(value: Any) -> Any:
    """Return arrays and tensors as lists, copied; other values unchanged."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain_setting(item) for item in value]
    return value


@lru_cache(maxsize=64)
def prepared(blueprint: Blueprint, mu: float | None, num_steps: int) -> Any:
    """Return a scheduler after ``set_timesteps``, to be read or copied but never stepped: the next caller gets it too.

    Raises:
        SettingsError: diffusers refuses the number of steps.
    """
    scheduler = blueprint.build()
    try:
        scheduler.set_timesteps(num_steps, **({} if mu is None else {"mu": mu}))
    except (*_DIFFUSERS_ERRORS, LookupError) as error:
        raise SettingsError(f"{blueprint.name}: diffusers refuses num_steps={num_steps}: {error}") from error
    return scheduler


def check_diffusers_settings(blueprint: Blueprint, mu: float | None) -> None:
    """Refuse settings with which the contract of `Scheduler` cannot be kept.

    Raises:
        SettingsError: names the setting, its value and the reason.
    """
    name, traits, get = blueprint.name, blueprint.traits, blueprint.settings.get
    prediction = get("prediction_type", "flow_prediction")
    flow_sigmas = bool(get("use_flow_sigmas"))

    def refuse(setting: str, reason: str) -> NoReturn:
        raise SettingsError(f"{name}: {setting}={shown(get(setting))} is not supported: {reason}")

    if prediction not in PREDICTION_TYPES or (prediction == "sample" and not traits.steps_x0):
        refuse("prediction_type", "diffusers has no step for it; use epsilon or v_prediction")
    if traits.family != "flow" and prediction == "flow_prediction":
        if not flow_sigmas:
            refuse("prediction_type", "a velocity belongs to flow sigmas; set use_flow_sigmas=True")
        if get("predict_x0") is False or get("algorithm_type") in ("dpmsolver", "sde-dpmsolver"):
            refuse("prediction_type", "diffusers solves it for the data only; set predict_x0=True or a '++' algorithm")
    if flow_sigmas and prediction == "v_prediction":
        refuse("prediction_type", "v belongs to a variance-preserving schedule; set use_flow_sigmas=False")
    for setting in OWN_SIGMAS:
        rescaled = traits.karras_keeps_flow and setting == "use_karras_sigmas"
        if flow_sigmas and get(setting) and not rescaled:
            refuse(setting, "its noise levels are not flow sigmas; set one of it and use_flow_sigmas")
    if get("solver_p") is not None:
        refuse("solver_p", "a nested scheduler cannot be copied for every run")
    if str(get("variance_type")).startswith("learned"):
        refuse("variance_type", "the denoiser would return twice its input; split its output and use a fixed variance")
    if get("invert_sigmas"):
        refuse("invert_sigmas", "t would rise during the run")
    if get("timestep_type") == "continuous" and prediction == "v_prediction":
        refuse("timestep_type", "t would be a logarithm of sigma; use timestep_type='discrete'")
    if get("interpolation_type", "linear") != "linear":
        refuse("interpolation_type", "the noise level at t would depend on the number of steps; use 'linear'")
    trained = get("num_train_timesteps", 1)
    if not isinstance(trained, int) or not 1 <= trained <= _MOST_TRAINED:
        refuse("num_train_timesteps", f"a table has an entry for each; give 1 to {_MOST_TRAINED}")
    if get("use_dynamic_shifting") and mu is None:
        refuse("use_dynamic_shifting", "without mu; pass mu=..., as the pipeline computes it for the latent's size")
    if mu is not None and not get("use_dynamic_shifting"):
        raise SettingsError(f"{name}: mu={mu!r} needs use_dynamic_shifting=True; leave mu out, or set it")
