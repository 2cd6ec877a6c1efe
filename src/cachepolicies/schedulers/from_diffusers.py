"""The schedulers of diffusers, adapted. Importing this module does not import diffusers."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies._errors import SettingsError, UnknownNameError, nearest_match_hint
from cachepolicies._settings import shown
from cachepolicies.schedulers._noise import Generators, as_generators, check_one_per_sample
from cachepolicies.schedulers._runs import batched_t, check_decreasing, check_num_steps, finished_error
from cachepolicies.schedulers._tables import interpolate
from cachepolicies.schedulers.base import PredictionType, SamplerTime, SamplingRun, Scheduler

SUPPORTED: tuple[str, ...] = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
)
"""Class names of the diffusers schedulers that `DiffusersScheduler` adapts."""

_FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_HEUN = ("FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler")
_ALWAYS_STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "CogVideoXDPMScheduler")
_EXPONENTIAL = ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "CogVideoXDPMScheduler")
# These look abar up at an integer t; the others interpolate a table of sqrt((1 - abar) / abar).
_INTEGER_TABLE = ("DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
# With one of these, t is found from sigma by interpolating log(sigma).
_OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_PREDICTION_TYPES: Mapping[str, PredictionType] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
# What diffusers raises on settings that do not go together.
_DIFFUSERS_ERRORS = (ValueError, TypeError, NotImplementedError, ImportError, AssertionError, ArithmeticError)


@frozen
class _Blueprint:
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
        return self.scheduler_class.__name__

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


def _blueprint_of(scheduler: Any) -> _Blueprint:
    if isinstance(scheduler, _Blueprint):
        return scheduler
    scheduler_class = scheduler if isinstance(scheduler, type) else type(scheduler)
    name = scheduler_class.__name__
    if name not in SUPPORTED or not scheduler_class.__module__.startswith("diffusers."):
        raise SettingsError(
            f"{scheduler_class.__module__}.{name} is not a diffusers scheduler that is supported; "
            f"supported: {', '.join(SUPPORTED)}. For another one write a subclass of cachepolicies' Scheduler"
        )
    parameters = _parameters(scheduler_class)
    if scheduler is scheduler_class:
        return _Blueprint(scheduler_class, {key: _plain(default) for key, default in parameters.items()})
    # Every value is passed on, also those that diffusers' from_config would drop because the caller's instance had
    # the default once. Keys of other classes, kept by diffusers for switching between them, mean nothing here.
    settings = {key: _plain(value) for key, value in scheduler.config.items() if key in parameters}
    shift = getattr(scheduler, "_shift", None)
    return _Blueprint(scheduler_class, settings, None if shift == settings.get("shift") else shift)


def _parameters(scheduler_class: type[Any]) -> dict[str, Any]:
    """Return the arguments of the constructor with their defaults."""
    found = inspect.signature(scheduler_class).parameters.values()
    return {one.name: one.default for one in found if one.kind is not inspect.Parameter.VAR_KEYWORD}


def _plain(value: Any) -> Any:
    """Return arrays and tensors as lists, copied; other values unchanged."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@frozen
class DiffusersScheduler(Scheduler):
    """A scheduler of diffusers as a `Scheduler`; `SUPPORTED` lists the classes.

    The settings are copied when the adapter is made and each run builds an instance of its own from them: the
    caller's instance is neither changed nor watched.

    alpha and sigma are those of what the denoiser is given, after ``scale_model_input``: the Euler and Heun schedulers
    for noise prediction work on ``data + s * noise`` but hand out that divided by ``sqrt(s ** 2 + 1)``, which is
    variance preserving. ``UniPCMultistepScheduler`` and ``DPMSolverMultistepScheduler`` with flow or Karras sigmas
    round the t that the denoiser is given to an integer and keep the exact sigma to themselves; alpha(t) and sigma(t)
    belong to the rounded t there, less than one unit of t away.

    Args:
        scheduler: an instance, or a class for its default settings.
        mu: the shift of schedulers with ``use_dynamic_shifting=True``, which pipelines compute from the latent's size.

    Raises:
        SettingsError: the class is not supported (the message lists those that are), or some setting is one with
            which t does not determine the noise level or the denoiser's output is not the size of its input.
    """

    _blueprint: _Blueprint = field(converter=_blueprint_of, alias="scheduler")
    mu: float | None = field(default=None, kw_only=True)
    # abar of every trained t, float64; empty for the flow family.
    _alpha_bar: Tensor = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_settings(self.name, self._blueprint.settings, self.mu)
        scheduler = self._blueprint.build()
        table = torch.empty(0) if self.family == "flow" else scheduler.alphas_cumprod
        object.__setattr__(self, "_alpha_bar", table.detach().to("cpu", torch.float64))

    @property
    def name(self) -> str:
        """The class name of the diffusers scheduler."""
        return self._blueprint.name

    @property
    def family(self) -> str:
        """``"flow"`` for flow-matching schedulers and for multistep ones with flow sigmas, otherwise ``"vp"``."""
        return "flow" if self.name in _FLOW_MATCHING or self._get("use_flow_sigmas") else "vp"

    @property
    def time(self) -> SamplerTime:
        """``"log-snr"`` for the exponential integrators on a variance-preserving schedule, otherwise ``"sigma"``.

        With flow sigmas these integrate in log-SNR as well, but the velocity is smoother in sigma: on the reference
        video model extrapolating in sigma was more accurate under UniPC.
        """
        return "log-snr" if self.name in _EXPONENTIAL and self.family == "vp" else "sigma"

    @property
    def prediction_type(self) -> PredictionType:
        """Diffusers' prediction type in our words."""
        return "velocity" if self.name in _FLOW_MATCHING else _PREDICTION_TYPES[self._get("prediction_type")]

    @property
    def evaluations_per_step(self) -> int:
        """Two for the Heun schedulers, one for the others."""
        return 2 if self.name in _HEUN else 1

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise, as the class and its settings say."""
        return (
            self.name in _ALWAYS_STOCHASTIC
            or bool(self._get("stochastic_sampling"))
            or str(self._get("algorithm_type")).startswith("sde-")
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """The arguments of the diffusers class, and ``mu`` if given; an infinite value as text."""
        settings = dict(self._blueprint.settings)
        if self._blueprint.shift is not None:
            settings["shift"] = self._blueprint.shift
        if self.mu is not None:
            settings["mu"] = self.mu
        return {key: str(v) if isinstance(v, float) and not math.isfinite(v) else v for key, v in settings.items()}

    @property
    def final_t(self) -> float | None:
        """0 for the flow family if the last step ends at sigma = 0, otherwise ``None``."""
        return 0.0 if self.family == "flow" and self._get("final_sigmas_type") in (None, "zero") else None

    def timesteps(self, num_steps: int) -> tuple[float, ...]:
        """Return ``timesteps`` after ``set_timesteps(num_steps)``, Heun's repeated entries once.

        Raises:
            SettingsError: ``num_steps`` is not a positive integer, diffusers refuses it, or it makes another number
                of steps of it, repeats a t (where it rounds to integers), or leaves the trained range.
        """
        steps: list[float] = self._prepared(num_steps).timesteps[:: self.evaluations_per_step].tolist()
        if len(steps) != num_steps:
            raise SettingsError(
                f"{self.name}: diffusers makes {len(steps)} steps of num_steps={num_steps}; use another"
            )
        highest = self._alpha_bar.numel() - 1
        if self.family == "vp" and not 0 <= min(steps) <= max(steps) <= highest:
            raise SettingsError(
                f"{self.name}: {num_steps} steps visit t from {max(steps):g} to {min(steps):g}, outside the trained "
                f"range of 0 to {highest}; change num_steps or steps_offset"
            )
        return check_decreasing([float(t) for t in steps], self.name)

    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the data in the denoiser's input at t, float64; see the class."""
        if self.family == "flow":
            return 1.0 - self.sigma(t)
        if self.name in _INTEGER_TABLE:
            return interpolate(self._alpha_bar, t).sqrt()
        return torch.rsqrt(1.0 + self._ratio(t) ** 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise in the denoiser's input at t, float64; see the class."""
        if self.family == "flow":
            return t.double() / float(self._get("num_train_timesteps"))
        if self.name in _INTEGER_TABLE:
            return (1.0 - interpolate(self._alpha_bar, t)).sqrt()
        ratio = self._ratio(t)
        return ratio * torch.rsqrt(1.0 + ratio**2)

    def begin(
        self,
        num_steps: int,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        device: torch.device | None = None,
    ) -> SamplingRun:
        """Start a run on a diffusers scheduler of its own.

        ``device`` is not needed: the scheduler's tables stay on the CPU, where reading them waits for no device, and t
        is made on the device of x.

        Raises:
            SettingsError: as `timesteps`.
            InputError: ``generator`` is neither a generator nor a list of them.
        """
        generators = as_generators(generator)
        self.timesteps(num_steps)
        scheduler = copy.deepcopy(self._prepared(num_steps))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return _DiffusersRun(scheduler, self.evaluations_per_step, self.stochastic, generators)

    def initial(self, noise: Tensor, num_steps: int) -> Tensor:
        """Return the noise ``(B, ...)`` times the scheduler's ``init_noise_sigma``, which flow matching does without.

        Raises:
            SettingsError: as `timesteps`.
        """
        return noise * float(getattr(self._prepared(num_steps), "init_noise_sigma", 1.0))

    def _get(self, setting: str) -> Any:
        return self._blueprint.settings.get(setting)

    def _ratio(self, t: Tensor) -> Tensor:
        """Return sigma / alpha at t, interpolated as the scheduler itself does between its trained t."""
        table = ((1.0 - self._alpha_bar) / self._alpha_bar).sqrt()
        if any(self._get(setting) for setting in _OWN_SIGMAS):
            return interpolate(table.log(), t).exp()
        return interpolate(table, t)

    def _prepared(self, num_steps: int) -> Any:
        return _prepared(self._blueprint, self.mu, check_num_steps(num_steps))


@lru_cache(maxsize=64)
def _prepared(blueprint: _Blueprint, mu: float | None, num_steps: int) -> Any:
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


def from_class_name(name: str, /, *, mu: float | None = None, **config: Any) -> DiffusersScheduler:
    """Adapt a diffusers scheduler by the name of its class; imports diffusers.

    Args:
        name: one of `SUPPORTED`.
        mu: as for `DiffusersScheduler`.
        config: arguments of the diffusers class; the rest keep their defaults.

    Raises:
        UnknownNameError: the name is not supported; the message lists those that are.
        SettingsError: the class has no such argument, or refuses its value.
    """
    if name not in SUPPORTED:
        raise UnknownNameError(
            f"{name!r} is not a diffusers scheduler that is supported; {nearest_match_hint(name, SUPPORTED)}"
        )
    scheduler_class = getattr(importlib.import_module("diffusers"), name)
    parameters = _parameters(scheduler_class)
    for key in config:
        if key not in parameters:
            raise SettingsError(f"{name}: unknown setting {key!r}: {nearest_match_hint(key, parameters)}")
    settings = {key: _plain(value) for key, value in {**parameters, **config}.items()}
    return DiffusersScheduler(_Blueprint(scheduler_class, settings), mu=mu)


class _DiffusersRun(SamplingRun):
    """One run of a diffusers scheduler that nobody else holds."""

    def __init__(self, scheduler: Any, evaluations_per_step: int, stochastic: bool, generators: Generators) -> None:
        self._scheduler = scheduler
        self._evaluations_per_step = evaluations_per_step
        self._stochastic = stochastic
        self._generators = generators
        self._index = 0
        self._previous_data: Tensor | None = None  # for CogVideoXDPMScheduler only

    @property
    def finished(self) -> bool:
        return self._index == len(self._scheduler.timesteps)

    @property
    def t(self) -> float:
        return float(self._timestep())

    @property
    def stage(self) -> int:
        # Heun's list is t0, t1, t1, t2, t2, ...: odd entries are the second evaluation of a step.
        return self._index % self._evaluations_per_step

    def model_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = self._timestep()
        scale = getattr(self._scheduler, "scale_model_input", None)
        scaled: Tensor = x if scale is None else scale(x, t)
        return scaled, batched_t(t.item(), x, t.dtype)

    def advance(self, output: Tensor, x: Tensor) -> Tensor:
        t = self._timestep()
        if self._stochastic:
            check_one_per_sample(self._generators, x.shape[0])
        following = self._step(output, t, x)
        self._index += 1
        return following.to(x.dtype)

    def _timestep(self) -> Tensor:
        if self.finished:
            raise finished_error(len(self._scheduler.timesteps))
        t: Tensor = self._scheduler.timesteps[self._index]
        return t

    def _step(self, output: Tensor, t: Tensor, x: Tensor) -> Tensor:
        noise = {"generator": self._generators} if self._stochastic else {}
        following: Tensor
        if type(self._scheduler).__name__ == "CogVideoXDPMScheduler":
            # Its own second-order method wants the last prediction of the data, and the t that was at, back.
            back = self._scheduler.timesteps[self._index - 1] if self._index else None
            following, self._previous_data = self._scheduler.step(
                output, self._previous_data, t, back, x, return_dict=False, **noise
            )
            return following
        following = self._scheduler.step(output, t, x, return_dict=False, **noise)[0]
        return following


def _check_settings(name: str, settings: Mapping[str, Any], mu: float | None) -> None:
    """Refuse settings with which the contract of `Scheduler` cannot be kept."""
    get = settings.get
    prediction = get("prediction_type", "flow_prediction")
    flow_sigmas = bool(get("use_flow_sigmas"))

    def refuse(setting: str, reason: str) -> NoReturn:
        raise SettingsError(f"{name}: {setting}={shown(get(setting))} is not supported: {reason}")

    if prediction not in _PREDICTION_TYPES or (name == "EulerAncestralDiscreteScheduler" and prediction == "sample"):
        refuse("prediction_type", "diffusers has no step for it; use epsilon or v_prediction")
    if name not in _FLOW_MATCHING and prediction == "flow_prediction":
        if not flow_sigmas:
            refuse("prediction_type", "a velocity belongs to flow sigmas; set use_flow_sigmas=True")
        if get("predict_x0") is False or get("algorithm_type") in ("dpmsolver", "sde-dpmsolver"):
            refuse("prediction_type", "diffusers solves it for the data only; set predict_x0=True or a '++' algorithm")
    if flow_sigmas and prediction == "v_prediction":
        refuse("prediction_type", "v belongs to a variance-preserving schedule; set use_flow_sigmas=False")
    for setting in _OWN_SIGMAS:
        rescaled = name == "UniPCMultistepScheduler" and setting == "use_karras_sigmas"
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
    if get("use_dynamic_shifting") and mu is None:
        refuse("use_dynamic_shifting", "without mu; pass mu=..., as the pipeline computes it for the latent's size")
    if mu is not None and not get("use_dynamic_shifting"):
        raise SettingsError(f"{name}: mu={mu!r} needs use_dynamic_shifting=True; leave mu out, or set it")
