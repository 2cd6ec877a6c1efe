"""A sampling loop that tells a cache what the pipelines of diffusers tell it, and the FLOPs that it executes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from cases import uncached
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cachepolicies.comparison import Workload


def stepped(
    workload: Workload, seed: int, now: list[float], context: Callable[..., AbstractContextManager[Any]]
) -> Tensor:
    """Sample once.

    Args:
        workload: of a guided denoiser.
        seed: of the sample.
        now: gets the timestep of every step before it is evaluated.
        context: opened around every evaluation with what diffusers' pipelines say of the step.
    """
    inputs, steps = workload.draw([seed]), workload.num_steps
    run, x = workload.scheduler.begin(steps), workload.scheduler.initial(inputs.noise, steps)
    for step in range(steps):
        now[0] = run.t
        level = torch.tensor([run.t], dtype=torch.float64)
        alpha, sigma = workload.scheduler.alpha(level).item(), workload.scheduler.sigma(level).item()
        given, t = run.model_input(x)
        with context("both", step_index=step, sigma=sigma / (alpha + sigma), num_inference_steps=steps):
            output = workload.denoiser(given, t, *inputs.args)
        x = run.advance(output, x)
    return workload.pictures(x)


def executed(one: Callable[[int], Tensor], seeds: Sequence[int]) -> tuple[Tensor, float]:
    """Return the pictures of all seeds, and the FLOPs of the first: every sample is sampled alone."""
    pictures, flops = [], 0
    for seed in seeds:
        counting = FlopCounterMode(display=False) if seed == seeds[0] else contextlib.nullcontext()
        with counting as counted:
            pictures.append(one(seed))
        if counted is not None:
            flops = counted.get_total_flops()
    return torch.cat(pictures), float(flops)


def flops_of(workload: Workload, seed: int) -> int:
    """Return the FLOPs of an uncached run."""
    with FlopCounterMode(display=False) as counted:
        uncached(workload, [seed])
    return int(counted.get_total_flops())
