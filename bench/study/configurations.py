"""What the study samples: a trained model with a sampler and a number of steps."""

from __future__ import annotations

import attrs
from attrs import frozen

from cachepolicies.comparison import Workload
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.reference import image_dit as image
from cachepolicies.reference.workloads import image_dit, video_dit
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.schedulers.from_diffusers import from_class_name

BUDGETS = (25, 17, 13, 20, 10, 31)
"""Evaluations a sample; sampled in this order."""

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
_VARIANCE_PRESERVING = {**image.SCHEDULE, "prediction_type": "epsilon"}
_MULTISTEP = {"unipc": "UniPCMultistepScheduler", "dpm-solver++": "DPMSolverMultistepScheduler"}


@frozen
class Configuration:
    """A model, a sampler and a number of steps.

    Attributes:
        model: ``"video-dit"`` or ``"image-dit"``.
        sampler: ``"euler"`` (for the variance-preserving image model that is DDIM), ``"unipc"`` or ``"dpm-solver++"``.
        steps: of the uncached run.
    """

    model: str
    sampler: str
    steps: int

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.model} {self.sampler} {self.steps}"

    @property
    def slug(self) -> str:
        """The name as a file's stem."""
        return self.name.replace(" ", "-").replace("+", "p")

    def workload(self) -> Workload:
        """Return what to sample and how to judge it; guidance is on, at 2."""
        workload = video_dit() if self.model == "video-dit" else image_dit()
        return attrs.evolve(workload, name=self.name, scheduler=self._scheduler(), num_steps=self.steps)

    def _scheduler(self) -> Scheduler:
        flow = self.model == "video-dit"
        if self.sampler == "euler":
            return FlowEuler() if flow else DDIM(prediction_type="noise", **image.SCHEDULE)
        return from_class_name(_MULTISTEP[self.sampler], **(_FLOW if flow else _VARIANCE_PRESERVING))


_SAMPLERS = (("euler", 50), ("unipc", 50), ("dpm-solver++", 50), ("euler", 30), ("euler", 100))

CONFIGURATIONS = tuple(
    Configuration(model, sampler, steps) for model in ("video-dit", "image-dit") for sampler, steps in _SAMPLERS
)
"""All of them; the video model costs eight times as much as the image model."""
