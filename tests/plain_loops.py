"""Sampling loops as users of diffusers write them, the reference for ours."""

from __future__ import annotations

import diffusers

from cachepolicies._output import tensor_of


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
