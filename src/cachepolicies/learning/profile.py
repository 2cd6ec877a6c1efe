"""A recorded run as a profile: the path and the errors, and what else was measured on the way."""

from __future__ import annotations

from cachepolicies.base.models import dtype_name, model_class_name
from cachepolicies.base.provenance import utc_now, versions_of
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.learning.recorder import RecordedRun
from cachepolicies.profiles.schema import Curve, ModelInfo, Profile, SchedulerInfo

LEARNED = "learned-"
"""What the names of learned profiles begin with."""


def profile_of(run: RecordedRun, model: object, scheduler: Scheduler | None, guidance: float | None) -> Profile:
    """Return what one run showed, without weights.

    Args:
        run: that came to its end.
        model: the denoiser that was recorded.
        scheduler: in use, ``None`` where it is not known.
        guidance: scale, ``None`` where it is not known.
    """
    kind, steps = model_class_name(model), len(run.timesteps)
    return Profile(
        name=f"{LEARNED}{kind}-{steps}".lower(),
        model=ModelInfo(kind),
        prediction_type=None if scheduler is None else scheduler.prediction_type,
        latent_shape=tuple(run.info.shape[1:]),
        scheduler=None if scheduler is None else SchedulerInfo.of(scheduler),
        timesteps=run.timesteps,
        dtype=dtype_name(run.info.dtype),
        guidance=guidance,
        samples=run.change.shape[2],
        trajectory="recorded",
        evaluations=steps * len(run.branches),
        versions=versions_of("torch", "cachepolicies", "diffusers", "numpy"),
        created=utc_now(),
        notes=f"branches: {', '.join(run.branches)}",
        curves={name: Curve(run.timesteps[: len(made)], made) for name, made in run.curves.items()},
        tables={"displacement": run.displacement, "change": run.change},
    )
