"""The schedulers of diffusers that are adapted, one row a class. Nothing of diffusers is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from cachepolicies.contracts.scheduler import SamplerTime


@frozen(kw_only=True)
class DiffusersTraits:
    """What the adapter has to know of one scheduler class of diffusers, whatever its settings.

    Attributes:
        family: ``"flow"`` for flow matching, whose denoiser returns a velocity; otherwise ``"vp"``, which the setting
            ``use_flow_sigmas`` turns into ``"flow"``.
        time: what it steps in while its family is ``"vp"``; ``"log-snr"`` for exponential integrators.
        evaluations_per_step: of the denoiser.
        stochastic: whether a step draws noise whatever the settings.
        integer_t: whether it looks abar up at an integer t; the others interpolate a table of sqrt((1 - abar) / abar).
        steps_x0: whether it has a step for a denoiser that returns the data.
        karras_keeps_flow: whether ``use_karras_sigmas`` leaves flow sigmas the flow sigmas that they are.
        hands_data_on: whether a step takes the last step's prediction of the data, and the t that was at, back.
    """

    family: Literal["flow", "vp"] = "vp"
    time: SamplerTime = "sigma"
    evaluations_per_step: int = 1
    stochastic: bool = False
    integer_t: bool = False
    steps_x0: bool = True
    karras_keeps_flow: bool = False
    hands_data_on: bool = False


TRAITS: Mapping[str, DiffusersTraits] = {
    "FlowMatchEulerDiscreteScheduler": DiffusersTraits(family="flow"),
    "FlowMatchHeunDiscreteScheduler": DiffusersTraits(family="flow", evaluations_per_step=2),
    "UniPCMultistepScheduler": DiffusersTraits(time="log-snr", karras_keeps_flow=True),
    "DPMSolverMultistepScheduler": DiffusersTraits(time="log-snr"),
    "DDIMScheduler": DiffusersTraits(integer_t=True),
    "DDPMScheduler": DiffusersTraits(integer_t=True, stochastic=True),
    "EulerDiscreteScheduler": DiffusersTraits(),
    "EulerAncestralDiscreteScheduler": DiffusersTraits(stochastic=True, steps_x0=False),
    "HeunDiscreteScheduler": DiffusersTraits(evaluations_per_step=2),
    "CogVideoXDDIMScheduler": DiffusersTraits(integer_t=True),
    "CogVideoXDPMScheduler": DiffusersTraits(integer_t=True, time="log-snr", stochastic=True, hands_data_on=True),
}
"""Class name of diffusers to what is to be known of it."""

SUPPORTED: tuple[str, ...] = tuple(TRAITS)
"""Class names of the diffusers schedulers that `cachepolicies.schedulers.DiffusersScheduler` adapts."""
