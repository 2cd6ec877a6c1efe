"""Sampling loops written out: as users of diffusers write them, for reference, and around a cached denoiser."""

from __future__ import annotations

import diffusers
import numpy as np
import torch

from cachepolicies.base.outputs import tensor_of
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE


def plain_loop(scheduler, denoiser, x, num_steps, generator=None, **conditioning):
    """Sample with a diffusers scheduler as its users write it."""
    scheduler.set_timesteps(num_steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    previous = None
    takes_generator = type(scheduler).__name__ not in ("UniPCMultistepScheduler", "HeunDiscreteScheduler")
    extra = {"generator": generator} if takes_generator else {}
    for i, t in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = tensor_of(denoiser(model_input, t.expand(x.shape[0]), **conditioning))
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            back = scheduler.timesteps[i - 1] if i > 0 else None
            x, previous = scheduler.step(output, previous, t, back, x, return_dict=False, **extra)
        else:
            x = scheduler.step(output, t, x, return_dict=False, **extra)[0]
    return x


def sampled(denoiser, num_steps, seeds):
    """Sample a cached denoiser from the noise of the seeds; return the number of evaluations of every sample."""
    scheduler = FlowEuler()
    ts, sampling = scheduler.timesteps(num_steps), scheduler.begin(num_steps)
    x = torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    with denoiser.run(timesteps=ts):
        while not sampling.finished:
            given, t = sampling.model_input(x)
            x = sampling.advance(denoiser(given, t), x)
    return np.sum([record.evaluated for record in denoiser.trace.records], axis=0)
