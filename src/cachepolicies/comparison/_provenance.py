"""What a comparison was run with: settings, versions and machine, as text."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from cachepolicies.base.models import dtype_name
from cachepolicies.base.provenance import versions_of
from cachepolicies.comparison._passes import PreparedCandidate
from cachepolicies.comparison.workload import Workload


def settings_of(
    workload: Workload, order: Sequence[PreparedCandidate], batch_size: int, repeats: int, audited: int
) -> dict[str, str]:
    denoiser = order[0].counted.model_class_name
    config = ", ".join(f"{name}={value}" for name, value in workload.scheduler.config.items())
    settings = {
        "denoiser": denoiser,
        "scheduler": f"{workload.scheduler.name} ({config})" if config else workload.scheduler.name,
        "steps": str(workload.num_steps),
        "latent shape": " x ".join(map(str, workload.latent_shape)),
        "guidance": "none" if workload.guidance is None else f"{workload.guidance:g}",
        "batch size": str(batch_size),
        "timed": "once" if repeats == 1 else f"{repeats} times, medians",
        "audited samples": str(audited),
    }
    profiles = {s.cached.profile.name: s.cached.profile for s in order if s.cached and s.cached.profile}
    for name, profile in profiles.items():
        settings[f"profile {name}"] = (
            f"{profile.model.class_name}, {profile.scheduler.name if profile.scheduler else 'scheduler not stated'}, "
            f"{profile.num_steps or 'unknown number of'} steps, {profile.origin}, "
            f"{profile.samples} samples, made {profile.created or 'at an unknown time'}"
        )
    for sampler in order:
        if sampler.cached is not None and sampler.candidate.kind == "policy":
            cached = sampler.cached
            taken = (
                "" if cached.policy is cached.settings or cached.choice.sentence else f", resolved to {cached.policy!r}"
            )
            named = cached.choice.sentence or repr(cached.settings)
            settings[sampler.label] = f"{named}{taken}, substitute {cached.substitute!r}, site {cached.site!r}"
    return settings


def provenance_of(noise: Tensor) -> dict[str, str]:
    found = versions_of("torch", "cachepolicies", "diffusers", "numpy", "torchmetrics")
    device = noise.device
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found["threads"] = str(torch.get_num_threads())
    found["dtype"] = dtype_name(noise.dtype)
    found["made"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return found
