"""Measured weights: what an error of the output at a step has grown to in the finished sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import InputError, ProfileError, SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.base.units import row_rms
from cachepolicies.contracts.scheduler import SamplingRun

_FEW = 6
"""How many steps, evenly spaced, get a weight where nobody says which.

Measured on the reference models: plans with the weights of four to six steps, interpolated, were as good on other
samples as with those of all (0.1 dB less in the mean over four models at 13 and 22 of 50 evaluations).
"""


def weight_steps(num_steps: int, weights: bool | int | None = None) -> tuple[int, ...]:
    """Return the steps that a calibration measures a weight for.

    Args:
        num_steps: N.
        weights: every m-th step from the first on and, where a sampler's steps differ most and little of the run is
            left to evaluate, each of the last m: ``1`` or ``True`` is every step, ``0`` or ``False`` none. ``None``
            takes six evenly spaced ones, the first and the last among them, and the last but one.

    Returns:
        Rising indices of steps; none for a run of one step, in which nothing can be reused.

    Raises:
        SettingsError: ``weights`` is no whole number >= 0, or not below N.
    """
    given: Any = weights
    if given is not None and (not isinstance(given, Integral) or given < 0):
        raise SettingsError(f"weights={shown(weights)}; give True, False, or every how many steps as a whole number")
    if weights == 0 or num_steps < 2:
        return ()
    if weights is None:
        # a multistep solver takes its last step by a lower order: the one before tells what that changes
        return tuple(sorted({round(k * (num_steps - 1) / (_FEW - 1)) for k in range(_FEW)} | {num_steps - 2}))
    stride = int(weights)
    if stride >= num_steps:
        raise SettingsError(f"weights={stride} is not below the {num_steps} steps of the run; give a smaller one, or 0")
    return (*range(0, num_steps - stride, stride), *range(num_steps - stride, num_steps))


@frozen(eq=False)
class Recording:
    """A run as it was sampled, in order to sample it again with one output replaced.

    Attributes:
        begin: starts the same run anew, with generators in their first state, and returns it with its first latent.
        outputs: ``(B, ...)`` what the denoiser returned, for every evaluation.
        first: for every step, which of them was its first.
        sample: ``(B, ...)`` the sample it ended in.
        start: index of the batch's first sample, for messages.
    """

    begin: Callable[[], tuple[SamplingRun, Tensor]]
    outputs: Sequence[Tensor]
    first: Sequence[int]
    sample: Tensor
    start: int


def measure_weights(
    denoiser: Callable[[Tensor, Tensor], Tensor], recording: Recording, steps: Sequence[int]
) -> NDArray[np.float64]:
    """Reuse at one step, sample on with the model, and compare the samples; once for every step asked for.

    At step k the output of step k - 1 stands in for y_k, which is a reuse: the perturbation has the direction and the
    size of a real one. Step 0 cannot be reused; there y_1 stands in, the same change the other way round. Where the two
    outputs are equal, the nearest step before with another output is taken, then the nearest after. The weight is

    ``w_k = rms(sample' - sample) / rms(y_{k-1} - y_k)``.

    A run of its own takes the recorded outputs up to step k - 1 without an evaluation, so that the history of a
    multistep sampler and the noise of a stochastic one are what they were. Of a sampler with two evaluations a step
    only the first is replaced: the second is the sampler's own correction of it, evaluated where the first one led.

    Args:
        denoiser: ``f(x, t)``; called e (N - 1 - k) times for step k, with e evaluations a step.
        recording: the run.
        steps: W indices.

    Returns:
        ``(W, B)`` float64.

    Raises:
        InputError: a sample is not finite after the perturbation.
        ProfileError: the output of a sample is the same at every step.
    """
    batch = recording.sample.shape[0]
    return np.stack([_weight(denoiser, recording, k) for k in steps]) if steps else np.empty((0, batch))


def _weight(denoiser: Callable[[Tensor, Tensor], Tensor], recording: Recording, step: int) -> NDArray[np.float64]:
    at = recording.first[step]
    stand_in = _reused_output(recording, step)
    run, x = recording.begin()
    evaluation = 0
    while not run.finished:
        x_in, t_in = run.model_input(x)  # asked for where nothing is evaluated, too: some samplers prepare themselves
        if evaluation < at:
            output = recording.outputs[evaluation]
        else:
            output = stand_in if evaluation == at else denoiser(x_in, t_in)
        # a sampler may write into what it is given
        x = run.advance(output.clone() if evaluation <= at else output, x)
        evaluation += 1
    change = row_rms(x.double() - recording.sample.double()).cpu().numpy()
    size = row_rms(stand_in.double() - recording.outputs[at].double()).cpu().numpy()
    if not np.isfinite(change).all():
        row = int(np.flatnonzero(~np.isfinite(change))[0])
        raise InputError(
            f"the sample is not finite after the output of step {step} was perturbed, for sample "
            f"{recording.start + row}, though the outputs are; check the scheduler and the dtype of the latents"
        )
    weight: NDArray[np.float64] = change / size
    return weight


def _reused_output(recording: Recording, step: int) -> Tensor:
    """Return what would stand in for the output at a step, ``(B, ...)``: another output, different in every row."""
    y = [recording.outputs[at] for at in recording.first]
    chosen = y[step].clone()
    for other in chain(reversed(range(step)), range(step + 1, len(y))):
        same = _equal_rows(chosen, y[step])
        if not bool(same.any()):
            return chosen
        chosen[same] = y[other][same]
    same = _equal_rows(chosen, y[step])
    if bool(same.any()):
        raise ProfileError(
            f"the output is the same at every step for sample {recording.start + int(same.nonzero()[0])}: a reuse "
            "makes no error there whose growth could be measured; calibrate with weights=False"
        )
    return chosen


def _equal_rows(a: Tensor, b: Tensor) -> Tensor:
    return (a == b).reshape(a.shape[0], -1).all(dim=1)
