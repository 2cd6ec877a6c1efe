"""The stand-in of MeanCache (Gao et al., arXiv 2601.19961): the mean velocity of the step ahead, from the path."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, instance_of, le, optional
from torch import Tensor

from cachepolicies import Context, InputError, NeedsError, Refresh, SettingsError, Setup, Substitute

LONGEST = 6
"""The most steps that the method looks back."""


def _pairs(values: Iterable[Iterable[int]]) -> tuple[tuple[int, int], ...]:
    found = []
    for step, window in values:
        found.append((step, window))
    return tuple(found)


@frozen
class MeanVelocity(Substitute):
    """Continue the last velocity by half of the slope that the path so far shows, over the step ahead.

    Every step of the run is logged: its latent x, its time s and its velocity v, computed or predicted. With i the step
    that is skipped and i0 = i - K,

        u = (x_i - x_i0) / (s_i - s_i0)        the mean velocity over the last K steps
        J = (v_i0 - u) / (s_i - s_i0)
        v_hat = v_{i-1} - J (s_{i+1} - s_i)

    Where v is linear in s along the path, -J is half of its slope, and v_hat the mean velocity over a step of this
    length from where v_{i-1} was taken. With Euler steps u is the mean of K velocities, and -J is (K - 1) / K of half
    the slope: K = 1 holds the last velocity, but for rounding. K is lower while fewer steps are logged.

    v has to be the velocity dx/ds of the latent that the denoiser is called with: flow matching, at the site
    ``output``. The published place is behind classifier-free guidance. A denoiser that guides inside is cut there. In a
    pipeline, whose branches are cut each for itself, it comes to the same: v_hat is a combination of x and v with
    weights that depend on s alone, x is the same for all branches, and these have the weight 1 together, ``(1 - scale)
    uncond + scale cond``, so that what v_hat adds of x is added once. The scale must be constant. Where the pipeline
    does more than that to the branches (QwenImagePipeline with ``true_cfg_scale`` rescales the guided velocity to the
    norm of the conditional one; others have ``guidance_rescale``, or APG), each branch is continued as it comes, and
    that is not the published place: there, wrap a denoiser that guides in a ``CachedDenoiser``.

    It keeps K outputs and K latents for each branch, and those of the last evaluation. u is a difference of latents:
    where they are in bfloat16, and the steps short, it is mostly rounding. In a run that is not declared the step ahead
    is taken to be as long as the last.

    Attributes:
        window: K, from 1 to 6.
        windows: pairs of a step and of the K from that step on, steps rising; before the first, ``window``.
        unit: how much t is for one unit of s, 1000 where the denoiser is called with 1000 sigma; negative where the
            velocity points the other way. ``None`` to take it from the scheduler and the model's class.
    """

    name: ClassVar[str] = "meanvelocity"

    window: int = field(default=3, validator=[instance_of(int), ge(1), le(LONGEST)])
    windows: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    unit: float | None = field(default=None, validator=optional(instance_of((int, float))))

    def __attrs_post_init__(self) -> None:
        steps = [step for step, _ in self.windows]
        numbers = all(type(number) is int for pair in self.windows for number in pair)
        if not numbers or steps != sorted({*steps}) or any(not 1 <= k <= LONGEST for _, k in self.windows):
            raise SettingsError(
                f"meanvelocity: windows is {self.windows}; give pairs of a step, rising, and of a K from 1 to {LONGEST}"
            )
        if self.unit is not None and (not math.isfinite(self.unit) or self.unit == 0.0):
            raise SettingsError(f"meanvelocity: unit is {self.unit}; give what t is for one unit of s, 1000 say")

    @property
    def history(self) -> int:
        """The last evaluation, which is held where a prediction is not finite."""
        return 1

    @property
    def recalls(self) -> int:
        """As many steps as the largest K: predicted velocities count as computed ones do."""
        return max([self.window, *(window for _, window in self.windows)])

    @property
    def wants_input(self) -> bool:
        """The latents."""
        return True

    def resolve(self, setup: Setup) -> MeanVelocity:
        """Return the substitute with its unit.

        Raises:
            NeedsError: it is not given, and no scheduler is known; or the model predicts no velocity.
        """
        if self.unit is not None:
            return self
        scheduler = setup.scheduler
        if scheduler is None:
            raise NeedsError(
                "meanvelocity compares latents with velocities, and no scheduler says in which time x changes by "
                "them; give scheduler=..., or substitute='meanvelocity:unit=1000' where t is 1000 sigma"
            )
        if (scheduler.family, scheduler.prediction_type) != ("flow", "velocity"):
            raise NeedsError(
                f"meanvelocity works on velocities of flow matching, and with scheduler {scheduler.name!r} (family "
                f"{scheduler.family!r}) the model predicts {scheduler.prediction_type!r}; use substitute='linear' there"
            )
        unit = 1.0 / float(scheduler.sigma(torch.ones(1)))
        adapter = setup.adapter
        if adapter is None:
            return evolve(self, unit=unit)
        if adapter.velocity is None:
            raise NeedsError(
                f"meanvelocity works on velocities, and the output of {adapter.model} is none: its pipelines make one "
                "of it; use substitute='linear' there"
            )
        falls = adapter.clock == "reversed-unit"
        size = unit if adapter.clock == "timestep" else 1.0
        return evolve(self, unit=-size if (adapter.velocity == "data") != falls else size)

    def window_at(self, index: int | None) -> int:
        """Return K at a step; ``window`` where its number is not known."""
        if index is None:
            return self.window
        place = bisect.bisect_right([step for step, _ in self.windows], index)
        return self.windows[place - 1][1] if place else self.window

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return v_hat, ``(B, ...)``, computed in float32 at least.

        Raises:
            InputError: output and latent have different shapes.
            NeedsError: nobody says what has flowed on.
            SettingsError: the t of the run are not of the unit.
        """
        x, place = context.input, context.place or "of the site"
        if not context.passed:
            raise NeedsError(
                f"meanvelocity continues its own velocities, and at place {place!r} nothing says what has flowed on "
                "before (context.passed); use it in a CachedDenoiser or in place, or substitute='linear'"
            )
        velocity = context.passed[0]
        if x is None or not context.entered or not x.shape == context.entered[0].shape == velocity.shape:
            given = None if x is None else tuple(x.shape)
            raise InputError(
                f"meanvelocity compares the latent with the velocity, and at place {place!r} the output has shape "
                f"{tuple(velocity.shape)}, the input {given}; it needs site='output', and a model that is called with "
                "the latent alone; use substitute='linear' otherwise"
            )
        unit = self._unit(context)
        back = min(self.window_at(context.index), len(context.passed)) - 1
        gone = (context.t - context.visited[back]) / unit
        if gone == 0.0:  # a second evaluation at this t has no path behind it
            return velocity.clone()
        dtype = torch.promote_types(velocity.dtype, torch.float32)
        mean = (x.to(dtype) - context.entered[back].to(dtype)) / gone
        slope = (context.passed[back].to(dtype) - mean) / gone
        ahead = (_next_level(context, end=abs(unit)) - context.t) / unit
        return (velocity.to(dtype) - slope * ahead).to(velocity.dtype)

    def _unit(self, context: Context) -> float:
        """Return the unit, checked against the run."""
        if self.unit is None:
            raise NeedsError(
                "meanvelocity was not resolved: no unit of s is known; give unit=1000 where t is 1000 sigma"
            )
        highest = max(map(abs, context.timesteps or (context.t,)))
        # A run goes from s = 1 to 0, or a part of that way.
        if highest > 1.001 * abs(self.unit) or (context.timesteps and highest < 0.005 * abs(self.unit)):
            raise SettingsError(
                f"meanvelocity: the run has t up to {highest:g}, and one unit of s is taken to be {self.unit:g}; give "
                "substitute='meanvelocity:unit=1000' where t is 1000 sigma, unit=1 where it is sigma"
            )
        return self.unit


def _next_level(context: Context, end: float) -> float:
    """Return the t behind the step: behind the last 0, or ``end`` where t rises."""
    steps = context.timesteps
    if steps is None or context.index is None:
        return 2.0 * context.t - context.visited[0]
    if context.index + 1 < len(steps):
        return steps[context.index + 1]
    rising = len(steps) > 1 and steps[-1] > steps[0]
    return end if rising else 0.0
