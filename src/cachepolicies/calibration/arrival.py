"""Whether a model is called and read as it was trained: on the calibration samples a wrong convention shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import ProfileError
from cachepolicies.base.outputs import tensor_of
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.conventions import CONVENTIONS, Convention, InConvention, in_convention, likeness

_AGAINST = -0.3
"""A velocity that points this far against the noise, at pure noise, has the wrong sign or is asked at the wrong end.

On the reference models, called rightly, the cosine is 0.9 and more; with the wrong sign or at the wrong end -0.75
and less, unless sign and end are both wrong, or only the range of t.
"""

_STAYED = 0.15
"""A sample that points this far along the noise that it came from may not have arrived at data.

On the reference models 0.12 and less where it has, 0.18 and more where it has not.
"""

_NEARER = 0.65
"""Another convention fits better if the sample points along the noise by less than this part of what it does now.

On the reference models 0.56 and less for the right one beside a wrong one; never below 1 the other way round.
"""

_FITS = 0.3
_STEPS = 10


@frozen
class Arrival:
    """How a run began and ended, means over the samples.

    Attributes:
        along: cosine between the first velocity and the noise.
        stayed: cosine between the sample and the noise.
    """

    along: float
    stayed: float

    @property
    def is_doubtful(self) -> bool:
        """Whether the model seems to be called or read wrongly."""
        return self.along < _AGAINST or self.stayed > _STAYED

    def is_better_than(self, other: Arrival) -> bool:
        """Whether it begins rightly, and arrives where the other does not."""
        return self.along > _FITS and (other.along < _AGAINST or self.stayed < _NEARER * other.stayed)


def check_arrival(
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    first: Tensor,
    noise: Tensor,
    last: Tensor,
) -> None:
    """Refuse a convention under which a model does not arrive at data, where it does under another one.

    Further evaluations are made only where the run is doubtful; where no convention does better, nothing is said: an
    untrained network arrives nowhere.

    Args:
        model: as it is calibrated, brought into this library's count.
        scheduler: of a flow; others are not looked at.
        samples: the batch.
        first: ``(B, ...)`` the output at pure noise.
        noise: ``(B, ...)`` the latent there.
        last: ``(B, ...)`` the sample.

    Raises:
        ProfileError: names the convention in use and those that fit.
    """
    if scheduler.family != "flow" or scheduler.prediction_type != "velocity":
        return
    found = Arrival(_mean(likeness(first, noise)), _mean(likeness(last, noise)))
    if not found.is_doubtful:
        return
    used = model.convention if isinstance(model, InConvention) else CONVENTIONS["diffusers"]
    inner = model.model if isinstance(model, InConvention) else model
    one = samples.rows(0, 1)
    fitting = [
        other.name
        for other in CONVENTIONS.values()
        if other != used and _arrival(inner, other, scheduler, one).is_better_than(found)
    ]
    if fitting:
        raise ProfileError(
            f"in the convention {used.name!r} (t from {used.at_noise:g} to {used.at_data:g}, velocity "
            f"{'noise - data' if used.sign > 0 else 'data - noise'}) the samples do not arrive at data: the first "
            f"velocity has the cosine {found.along:.2f} with the noise, and the sample {found.stayed:.2f}. The model "
            f"arrives with {' or '.join(f'convention={name!r}' for name in fitting)}"
        )


def _arrival(
    model: Callable[..., Any], convention: Convention, scheduler: Scheduler, one: CalibrationSamples
) -> Arrival:
    """Return how a short run in another convention begins and ends."""
    called = in_convention(model, convention)
    run = scheduler.begin(_STEPS)
    x = noise = scheduler.initial(one.noise, _STEPS)
    first: Tensor | None = None
    while not run.finished:
        given, t = run.model_input(x)
        output = tensor_of(called(given, t, *one.args, **one.kwargs))
        first = output.clone() if first is None else first
        x = run.advance(output, x)
    assert first is not None
    return Arrival(_mean(likeness(first, noise)), _mean(likeness(x, noise)))


def _mean(values: Tensor) -> float:
    return float(values.mean()) if bool(torch.isfinite(values).all()) else -1.0
