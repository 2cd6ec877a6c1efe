"""The cases that methods are compared on: a reference model with a solver, its profile, and the exact solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies import CalibrationSamples, Profile, calibrate, load_profile, sample, save_profile
from cachepolicies.base.outputs import tensor_of
from cachepolicies.calibration import try_plans
from cachepolicies.comparison import Workload
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.reference import workloads
from cachepolicies.reference.image_dit import SCHEDULE
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import from_class_name
from cachepolicies.schedulers.karras_heun import KarrasHeun

OWN = "Euler or DDIM"
MULTISTEP = {"UniPC": "UniPCMultistepScheduler", "DPM-Solver++": "DPMSolverMultistepScheduler"}
SOLVERS = (OWN, *MULTISTEP)
CALIBRATION = range(1000, 1008)
PROFILES = Path(__file__).parents[2] / "profiles"
CALIBRATED = Path(__file__).parents[1] / "results" / "profiles"
"""Profiles of the multistep solvers, which the library does not ship."""

ALONG_PATH = "linear:time=path,correct=0.8"
PLANNED_WITH = (ALONG_PATH, "linear:time=path,correct=0.5", "linear:time=path")
"""Substitutes whose plans are tried in a profile, so that the best can be chosen."""

TRIED = range(1000, 1016)
"""Seeds of the trials, those of the calibration first."""

CHANGE = 1e-3
"""RMS of the random change of the first output by which unstable samples are found."""


@frozen
class Case:
    """A model with a solver.

    Attributes:
        model: name of the function of the reference workloads.
        solver: one of ``SOLVERS``.
        workload: the model's, with the solver as its scheduler.
        profile: calibrated with it.
    """

    model: str
    solver: str
    workload: Workload = field(repr=False)
    profile: Profile = field(repr=False)

    def fresh(self) -> Workload:
        """Return the workload with a network of its own: some caches leave traces on the one they were enabled on."""
        return with_solver(self.model, self.solver)


def with_solver(model: str, solver: str) -> Workload:
    """Return a reference workload with another solver."""
    workload: Workload = getattr(workloads, model)()
    found = scheduler_of(workload, solver)
    if found is None:
        raise ValueError(f"{model} has no scheduler for {solver}")
    return attrs.evolve(workload, scheduler=found)


def scheduler_of(workload: Workload, solver: str) -> Scheduler | None:
    """Return the solver for a workload; none where diffusers has no adapted class for its noise levels."""
    if solver == OWN:
        return workload.scheduler
    if isinstance(workload.scheduler, FlowEuler):
        return from_class_name(MULTISTEP[solver], prediction_type="flow_prediction", use_flow_sigmas=True)
    if isinstance(workload.scheduler, DDIM):
        return from_class_name(MULTISTEP[solver], prediction_type="epsilon", **SCHEDULE)
    return None


def case_of(model: str, solver: str) -> Case | None:
    """Return the case, calibrated if it was not yet; none where the model has no such solver."""
    own: Workload = getattr(workloads, model)()
    if scheduler_of(own, solver) is None:
        return None
    workload = with_solver(model, solver)
    if solver == OWN:
        return Case(model, solver, workload, load_profile(PROFILES / f"{workload.name}.json"))
    path = CALIBRATED / f"{workload.name}-{solver.lower().replace('++', '-pp')}.json"
    if not path.exists():
        drawn = workload.draw(CALIBRATION)
        made = calibrate(
            workload.denoiser,
            workload.scheduler,
            CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=tuple(CALIBRATION)),
            num_steps=workload.num_steps,
            name=path.stem,
            guidance=workload.guidance,
        )
        save_profile(made, path)
    return Case(model, solver, workload, _tried(workload, path))


def _tried(workload: Workload, path: Path) -> Profile:
    """Return a profile with trials of the substitutes that plans are made for; written where it had none."""
    profile = load_profile(path)
    missing = [name for name in PLANNED_WITH if name not in {trials.substitute for trials in profile.trials}]
    if not missing:
        return profile
    drawn = workload.draw(TRIED)
    samples = CalibrationSamples(noise=drawn.noise, args=drawn.args, kwargs=drawn.kwargs, seeds=tuple(TRIED))
    for name in missing:
        profile = try_plans(
            profile, workload.denoiser, workload.scheduler, samples, substitute=name, decode=workload.pictures
        )
    save_profile(profile, path)
    return profile


def sampled(workload: Workload, seeds: Sequence[int], denoiser: Any, steps: int | None = None) -> Tensor:
    """Return the pictures of runs with a denoiser."""
    inputs = workload.draw(seeds)
    latents = sample(
        denoiser, workload.scheduler, inputs.noise, *inputs.args, num_steps=steps or workload.num_steps, **inputs.kwargs
    )
    return workload.pictures(latents)


def uncached(workload: Workload, seeds: Sequence[int], steps: int | None = None) -> Tensor:
    """Return the pictures of uncached runs."""
    return sampled(workload, seeds, workload.denoiser, steps)


def moved(workload: Workload, seeds: Sequence[int]) -> Tensor:
    """Return the pictures of uncached runs with their first output changed at random."""
    return sampled(workload, seeds, _changed(workload.denoiser))


@cache
def exact(model: str, seeds: tuple[int, ...]) -> Tensor:
    """Return the pictures at the end of the model's differential equation.

    Heun in 200 steps for flow matching and Karras' noise levels, where 100 steps are 75 dB and more from it; the image
    model is known at 1000 integer noise levels only, and DDIM takes them all.
    """
    workload: Workload = getattr(workloads, model)()
    if isinstance(workload.scheduler, DDIM):
        return uncached(workload, seeds, SCHEDULE["num_train_timesteps"])
    flow = isinstance(workload.scheduler, FlowEuler)
    heun = from_class_name("FlowMatchHeunDiscreteScheduler") if flow else KarrasHeun()
    return uncached(attrs.evolve(workload, scheduler=heun), seeds, 200)


def _changed(denoiser: Callable[..., Any]) -> Callable[..., Tensor]:
    first = True

    def denoise(x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal first
        output = tensor_of(denoiser(x, t, *args, **kwargs))
        if first:
            output = output + CHANGE * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        first = False
        return output

    return denoise
