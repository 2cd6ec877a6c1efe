"""The schedulers of diffusers, adapted. Importing this module does not import diffusers."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.errors import SettingsError, UnknownNameError, nearest_match_hint
from cachepolicies.contracts.scheduler import PredictionType, SamplerTime, SamplingRun, Scheduler
from cachepolicies.schedulers._diffusers_run import DiffusersRun
from cachepolicies.schedulers._diffusers_settings import (
    OWN_SIGMAS,
    PREDICTION_TYPES,
    Blueprint,
    blueprint_of,
    check_diffusers_settings,
    parameters_of,
    plain_setting,
    prepared,
)
from cachepolicies.schedulers._noise import as_generators
from cachepolicies.schedulers._runs import check_decreasing, check_num_steps
from cachepolicies.schedulers._tables import interpolate
from cachepolicies.schedulers.diffusers_traits import SUPPORTED as SUPPORTED
from cachepolicies.schedulers.diffusers_traits import TRAITS


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

    _blueprint: Blueprint = field(converter=blueprint_of, alias="scheduler")
    mu: float | None = field(default=None, kw_only=True)
    # abar of every trained t, float64; empty for the flow family.
    _alpha_bar: Tensor = field(init=False, eq=False, repr=False)

    @_alpha_bar.default
    def _trained_alpha_bar(self) -> Tensor:
        check_diffusers_settings(self._blueprint, self.mu)
        scheduler = self._blueprint.build()
        table: Tensor = torch.empty(0) if self.family == "flow" else scheduler.alphas_cumprod
        return table.detach().to("cpu", torch.float64)

    @property
    def name(self) -> str:
        """The class name of the diffusers scheduler."""
        return self._blueprint.name

    @property
    def family(self) -> str:
        """``"flow"`` for flow-matching schedulers and for multistep ones with flow sigmas, otherwise ``"vp"``."""
        return "flow" if self._get("use_flow_sigmas") else self._blueprint.traits.family

    @property
    def time(self) -> SamplerTime:
        """``"log-snr"`` for the exponential integrators on a variance-preserving noise schedule, otherwise ``"sigma"``.

        With flow sigmas these integrate in log-SNR as well, but the velocity is smoother in sigma: on the reference
        video model extrapolating in sigma was more accurate under UniPC.
        """
        return self._blueprint.traits.time if self.family == "vp" else "sigma"

    @property
    def prediction_type(self) -> PredictionType:
        """Diffusers' prediction type in our words."""
        return PREDICTION_TYPES[self._blueprint.settings.get("prediction_type", "flow_prediction")]

    @property
    def evaluations_per_step(self) -> int:
        """Two for the Heun schedulers, one for the others."""
        return self._blueprint.traits.evaluations_per_step

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise, as the class and its settings say."""
        return (
            self._blueprint.traits.stochastic
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
        if self._blueprint.traits.integer_t:
            return interpolate(self._alpha_bar, t).sqrt()
        return torch.rsqrt(1.0 + self._ratio(t) ** 2)

    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise in the denoiser's input at t, float64; see the class."""
        if self.family == "flow":
            return t.double() / float(self._get("num_train_timesteps"))
        if self._blueprint.traits.integer_t:
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
        return DiffusersRun(scheduler, self._blueprint.traits, self.stochastic, generators)

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
        if any(self._get(setting) for setting in OWN_SIGMAS):
            return interpolate(table.log(), t).exp()
        return interpolate(table, t)

    def _prepared(self, num_steps: int) -> Any:
        return prepared(self._blueprint, self.mu, check_num_steps(num_steps))


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
    if name not in TRAITS:
        raise UnknownNameError(
            f"{name!r} is not a diffusers scheduler that is supported; {nearest_match_hint(name, TRAITS)}"
        )
    scheduler_class = getattr(importlib.import_module("diffusers"), name)
    parameters = parameters_of(scheduler_class)
    for key in config:
        if key not in parameters:
            raise SettingsError(f"{name}: unknown setting {key!r}: {nearest_match_hint(key, parameters)}")
    settings = {key: plain_setting(value) for key, value in {**parameters, **config}.items()}
    return DiffusersScheduler(Blueprint(scheduler_class, settings), mu=mu)
