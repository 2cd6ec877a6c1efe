"""Which steps to evaluate under a multistep sampler where nothing was measured: from the noise levels of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from cachepolicies.base.errors import InputError, SettingsError
from cachepolicies.contracts.adapter import Clock
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.schedulers.impulse import impulse_response
from cachepolicies.schedulers.noise_share import NoiseShare

_SHORT = 20
"""Steps of a run in which a multistep sampler shows that it is one; in fewer than 15 diffusers lowers the order."""

_APPEARED = 0.4
"""Share of data from which the filtered latent changes by as much in every step of flow matching, and by less before.

Seen on the reference models, not their twins; of 0.2, 0.3 and 0.4 the best there.
"""


def is_multistep(scheduler: Scheduler) -> bool:
    """Return whether a step of a sampler uses outputs of steps before it; not where its steps are not linear."""
    try:
        return impulse_response(scheduler, _SHORT).multistep
    except SettingsError:  # clipped or thresholded samples, or noise: no matrix says what an output does
        return False


def spaced_steps(
    timesteps: Sequence[float], count: int, scheduler: Scheduler, clock: Clock = "timestep"
) -> tuple[int, ...]:
    """Return the steps of a multistep sampler (UniPC, DPM-Solver++) to evaluate, the first and the last among them.

    What such a sampler remembers keeps the error of a reuse, and its last step is long in the logarithm of the
    signal-to-noise ratio. In flow matching the steps are even in the square root of the share of data, ``1 - t``, up
    to 0.4, and in the share beyond: dense early, where a step multiplies what is data in the latent. On other noise
    schedules every step counts the same.

    Chosen on the reference models, not their twins, under UniPC with the corrected line.

    Args:
        timesteps: of the run, as the denoiser is called.
        count: of evaluations, from 1 to the number of steps.
        scheduler: in use.
        clock: how the denoiser is called with the scheduler's t.

    Returns:
        ``count`` indices, ascending; one alone is the first.
    """
    if count == 1:
        return (0,)
    total = len(timesteps)
    places = _places(timesteps, scheduler, clock) or [float(k) for k in range(total)]
    first, length = places[0], places[-1] - places[0]
    chosen = [0]
    for i in range(1, count):
        wanted = first + length * i / (count - 1)
        left = range(chosen[-1] + 1, total - (count - 1 - i))
        chosen.append(min(left, key=lambda k: abs(places[k] - wanted)))
    return tuple(chosen)


def _places(timesteps: Sequence[float], scheduler: Scheduler, clock: Clock) -> list[float] | None:
    """Return where the steps are in what they are even in; none for other schedules than flow matching's."""
    if scheduler.family != "flow":
        return None
    noise = NoiseShare.of(scheduler, clock)
    try:
        data = [1.0 - noise.at(t) for t in timesteps]
    except InputError:  # t is counted otherwise than the adapter says
        return None
    if not all(0.0 <= share <= 1.0 for share in data):
        return None
    places = [_place(share) for share in data]
    return places if all(b > a for a, b in pairwise(places)) else None


def _place(data: float) -> float:
    """Return the square root of a share of data, continued by its tangent."""
    if data <= _APPEARED:
        return math.sqrt(data)
    root = math.sqrt(_APPEARED)
    return root + (data - _APPEARED) / (2.0 * root)
