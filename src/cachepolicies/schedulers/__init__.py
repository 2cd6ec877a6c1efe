"""Schedulers: one file for each noise schedule or sampler, and adapters for those of diffusers."""

from cachepolicies.contracts.scheduler import SamplingRun as SamplingRun
from cachepolicies.contracts.scheduler import Scheduler as Scheduler
from cachepolicies.schedulers.conventions import CONVENTIONS as CONVENTIONS
from cachepolicies.schedulers.conventions import Convention as Convention
from cachepolicies.schedulers.conventions import in_convention as in_convention
from cachepolicies.schedulers.ddim import DDIM as DDIM
from cachepolicies.schedulers.ddpm import DDPM as DDPM
from cachepolicies.schedulers.flow_euler import FlowEuler as FlowEuler
from cachepolicies.schedulers.from_diffusers import DiffusersScheduler as DiffusersScheduler
from cachepolicies.schedulers.karras_euler import KarrasEuler as KarrasEuler
from cachepolicies.schedulers.karras_heun import KarrasHeun as KarrasHeun
from cachepolicies.schedulers.resolve import as_scheduler as as_scheduler

__all__ = [
    "CONVENTIONS",
    "DDIM",
    "DDPM",
    "Convention",
    "DiffusersScheduler",
    "FlowEuler",
    "KarrasEuler",
    "KarrasHeun",
    "SamplingRun",
    "Scheduler",
    "as_scheduler",
    "in_convention",
]
