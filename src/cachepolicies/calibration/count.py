"""How many evaluations a calibration makes, said before the first of them."""

from __future__ import annotations

from attrs import frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.calibration.weights import weight_steps
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.profiles.schema import Trajectory


@frozen
class EvaluationCount:
    """Denoiser evaluations of a calibration; one row of a batch counts as one evaluation.

    Attributes:
        samples: number of samples.
        steps: per sample, at the calibrated points (the first evaluation of every step).
        extra_stages: per sample, the further evaluations of the sampler itself (Heun's second ones).
        differences: per sample, for the finite differences: two for every pair of neighbouring points.
        weights: per sample, for the measured weights: the rest of the run after every step that gets one.
    """

    samples: int
    steps: int
    extra_stages: int
    differences: int
    weights: int = 0

    @property
    def per_sample(self) -> int:
        """Evaluations per sample."""
        return self.steps + self.extra_stages + self.differences + self.weights

    @property
    def total(self) -> int:
        """Evaluations of all samples."""
        return self.samples * self.per_sample

    def __str__(self) -> str:
        stages = f" + {self.extra_stages} for the sampler's own further stages" if self.extra_stages else ""
        weights = f" + {self.weights} for weights" if self.weights else ""
        return (
            f"{self.total} denoiser evaluations: {self.samples} samples x {self.per_sample} "
            f"({self.steps} steps{stages} + {self.differences} for finite differences{weights})"
        )


def evaluations_needed(
    scheduler: Scheduler,
    num_steps: int,
    samples: int = 8,
    trajectory: Trajectory = "model",
    weights: bool | int | None = None,
) -> EvaluationCount:
    """Count the denoiser evaluations that `calibrate` makes with these settings.

    Without weights at most 3 N per sample for N steps of a sampler that evaluates once a step; two fewer where the
    denoiser cannot be evaluated at the sample itself, so that the last step has no next point. The weights that are
    measured by default take about 3 N more, those of every step N (N - 1) / 2; twice that for two evaluations a step.

    Args:
        scheduler: the scheduler.
        num_steps: N.
        samples: S.
        trajectory: ``"noised"`` takes no sampler steps, so no further stages and no weights.
        weights: as for `calibrate`.

    Raises:
        SettingsError: the scheduler refuses the number of steps, or it is 1 without a next point; or there can be no
            such weights.
    """
    timesteps = scheduler.timesteps(num_steps)
    pairs = num_steps if has_next_point(scheduler, timesteps) else num_steps - 1
    if pairs == 0:
        raise SettingsError(
            f"num_steps={num_steps} leaves no step to difference along with scheduler {scheduler.name!r}; "
            "use at least 2"
        )
    # by the scheduler's contract the last step of a two-stage sampler takes one evaluation
    extra = (scheduler.evaluations_per_step - 1) * (num_steps - 1) if trajectory == "model" else 0
    growth = scheduler.evaluations_per_step * sum(
        num_steps - 1 - k for k in steps_weighed(num_steps, trajectory, weights)
    )
    return EvaluationCount(samples=samples, steps=num_steps, extra_stages=extra, differences=2 * pairs, weights=growth)


def steps_weighed(num_steps: int, trajectory: Trajectory, weights: bool | int | None) -> tuple[int, ...]:
    """Return the steps that get a measured weight: `weight_steps`, none where no run is sampled.

    Raises:
        SettingsError: as `weight_steps`, or weights are asked for with ``trajectory="noised"``.
    """
    if trajectory == "noised" and weights is not None and weights != 0:
        raise SettingsError(
            f"weights={weights!r} with trajectory='noised': a weight is measured on the model's own runs, and there "
            "are none; leave weights out, or use trajectory='model'"
        )
    return weight_steps(num_steps, False if trajectory == "noised" else weights)


def has_next_point(scheduler: Scheduler, timesteps: tuple[float, ...]) -> bool:
    """Whether the denoiser can be evaluated at the sample, so that the last step has a pair of points."""
    return scheduler.final_t is not None and scheduler.final_t != timesteps[-1]
