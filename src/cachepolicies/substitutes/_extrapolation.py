"""What the extrapolating substitutes share: the axis they extrapolate in, the weights, and the sum."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from attrs import Attribute, evolve, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import NeedsError, RunError, SettingsError
from cachepolicies.base.settings import finite, fraction, one_of, plain, refuse, shown
from cachepolicies.base.timesteps import same_timesteps, slack_of
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import FILLED_IN, Context, Extrapolation, Prediction, Refresh
from cachepolicies.schedulers.impulse import impulse_response
from cachepolicies.schedulers.resolve import as_scheduler
from cachepolicies.substitutes._path import OutputPath

Time = Literal["scheduler", "t", "sigma", "log-snr", "path", "index"]
Steps = Literal["scheduler", "euler"]
Differences = Literal["newton", "taylorseer"]
Weights = tuple[float, ...]
Floats = NDArray[np.float64]

S = TypeVar("S", bound="Extrapolating")

_SAME = 1e-6
"""Two points closer than this fraction of the larger are one noise level, rounded differently."""

_NO_EFFECT = 1e-6
"""An output changes a latent by less than this part of what it changes others by: that is the sampler's rounding."""

_NO_SCHEDULER = (
    "substitute {!r} corrects evaluations by what the sampler makes of them, and no scheduler is known; give "
    "scheduler=..., or correct=0"
)

_NO_RUN = (
    "substitute {!r} with time='index' counts the steps of a run, and there is no declared run here; declare it, `with "
    "denoiser.run(timesteps=...)`, or use time='t'"
)

_MOST_RUNS = 16
"""Runs of different timesteps whose axis is remembered; a pipeline may shift them for every picture."""

_EULERS = ("flow-euler", "FlowMatchEulerDiscreteScheduler")

_MOST_REMEMBERED = 4096
"""Noise levels whose point on the axis is remembered; a run visits far fewer."""


def at_least_one(instance: object, attribute: Attribute[Any], value: Any) -> None:
    """Accept a finite number >= 1, or ``None``.

    Raises:
        SettingsError: anything else.
    """
    if value is None:
        return
    finite(instance, attribute, value)
    if value < 1:
        refuse(instance, attribute, value, "a number >= 1, or None for no guard")


def _scheduler(value: Any) -> Scheduler | None:
    return None if value is None else as_scheduler(value)


@frozen(kw_only=True)
class Extrapolating(Extrapolation):
    """A weighted sum of the last ``order + 1`` outputs of every row; the weights depend on the noise levels only.

    Every row has a history of its own. While it is short, and where two refreshes lie at one point of the axis or one
    of them at no finite point, the order is lower. The arithmetic is in float32 at least.

    Attributes:
        axis: given as ``time=``. What the outputs are extrapolated in: ``"t"``, as the denoiser is called with;
            ``"sigma"``, the noise level, which is sigma for the family ``flow`` and sigma / alpha for ``vp`` and
            ``edm``; ``"log-snr"``, log(alpha^2 / sigma^2); ``"path"``, how far the output went on the calibration runs,
            from the profile's table ``change``; ``"index"``, the number of the step, in a declared run only, as the
            authors of TaylorSeer, HiCache and SpeCa count; or ``"scheduler"``, whichever of the first three the sampler
            steps in, and t where no scheduler is known.
        correct: how much of the stand-ins' error is made up for at the next evaluation, from 0 (none) to 1. There the
            polynomial through the new output and the ones before it, of one order more, says what the stand-ins should
            have been; the difference, times what it did to the sample, is added to the output (deferred correction).
            Needs a declared run, a scheduler with one evaluation a step and the site ``output``, and keeps one output
            more. In trials 0.8 was best.
        steps: what a correction takes the sampler to make of an output: ``"scheduler"``, what its own run of as many
            steps does; or ``"euler"``, Euler's steps on the timesteps of the run, which a pipeline may shift for every
            picture.
        guard: how far the RMS of a stand-in may leave the range of the row's evaluated outputs, a factor >= 1, before
            the newest output is held instead; ``None`` for no limit.
        scheduler: noise schedule that the axis is read from: anything that `as_scheduler` takes. Filled in at set-up
            with the one in use, if none was given.
        path: of the output, for ``time="path"``; filled in at set-up from the profile, if none was given.
    """

    axis: Time = field(default="scheduler", alias="time", validator=one_of(*get_args(Time)))
    guard: float | None = field(default=2.0, converter=plain, validator=at_least_one)
    correct: float = field(default=0.0, converter=plain, validator=fraction)
    steps: Steps = field(default="scheduler", validator=one_of(*get_args(Steps)))
    scheduler: Scheduler | None = field(default=None, converter=_scheduler, metadata=FILLED_IN)
    path: OutputPath | None = field(default=None, repr=False, metadata=FILLED_IN)
    # Functions of t and of a run's timesteps alone, which cost more to compute than to look up.
    _known_effects: dict[tuple[float, ...], tuple[tuple[float, ...], ...]] = field(
        init=False, factory=dict, eq=False, repr=False
    )
    _points: dict[float, float] = field(init=False, factory=dict, eq=False, repr=False)
    _runs: dict[tuple[float, ...], Any] = field(init=False, factory=dict, eq=False, repr=False)

    @abstractmethod
    def weights(self, now: float, points: Sequence[float]) -> Weights:
        """Return the weights of outputs at distinct finite points.

        Args:
            now: where to extrapolate to.
            points: where the outputs lie, newest first, between 2 and ``order + 1`` of them.

        Returns:
            One weight for each point.
        """

    @property
    def corrects(self) -> bool:
        """Whether ``correct`` is not 0."""
        return self.correct != 0

    @property
    def notes(self) -> tuple[str, ...]:
        """That t is extrapolated in for want of a scheduler, where that is so."""
        if self.axis == "scheduler" and self.scheduler is None and self.order > 0:
            return (
                f"substitute {self.name!r} extrapolates in t: no scheduler is known whose own time it could use; give "
                "scheduler=...",
            )
        return ()

    def resolve(self: S, setup: Setup) -> S:
        """Return the substitute with the scheduler in use, and the profile's path, unless it was given its own.

        Raises:
            NeedsError: ``time="sigma"`` or ``"log-snr"``, and no scheduler is known; ``time="path"``, and there is no
                profile with the table ``change``; or ``correct``, and no scheduler is known.
            SettingsError: ``correct``, and the scheduler makes two evaluations a step.
        """
        scheduler, profile = setup.scheduler if self.scheduler is None else None, setup.profile
        made = self if scheduler is None else evolve(self, scheduler=scheduler)
        if made.axis == "path" and made.path is None and profile is not None:
            made = evolve(made, path=OutputPath.of(profile))
        made._resolved_axis()
        made._check_correction()
        return made

    def time(self, t: float) -> float:
        """Return the point of the axis that belongs to t; infinite where the noise level has none, as log-SNR at 0.

        Raises:
            NeedsError: the axis cannot be had without a scheduler, and none is known; or it counts the steps of a run.
        """
        point = self._points.get(t)
        if point is None:
            if len(self._points) >= _MOST_REMEMBERED:
                self._points.clear()
            axis = self._resolved_axis()
            if axis == "index":
                raise NeedsError(_NO_RUN.format(self.name))
            point = self._points[t] = _point(axis, self.scheduler, t) if self.path is None else self.path.at(t)
        return point

    def coefficients(self, t: float, refreshes: Sequence[float]) -> Weights:
        """Return the weights of the outputs at ``refreshes`` in the stand-in at t, newest first.

        A refresh that is passed over has the weight 0; see `cachepolicies.substitutes.Extrapolation`.
        """
        return self._combination(t, tuple(refreshes))[0]

    def many_coefficients(self, t: Floats, refreshes: Floats) -> Floats:
        """Return what `coefficients` returns, at many points at once.

        Args:
            t: ``(M,)`` noise levels of the skipped evaluations.
            refreshes: ``(M, n)`` noise levels of the last refreshes of each, newest first.

        Returns:
            ``(M, n)`` float64; 0 for refreshes that are passed over.
        """
        levels, place = np.unique(np.column_stack([t, refreshes]), return_inverse=True)
        points = np.array([self.time(level) for level in levels.tolist()])[place.reshape(len(t), -1)]
        used = points[:, : self.order + 2]
        found = np.zeros(refreshes.shape)
        if used.shape[1] == 2:
            found[:, 0] = 1.0
            return found
        ordinary = np.isfinite(used).all(axis=1)
        for i, j in combinations(range(1, used.shape[1]), 2):
            a, b = used[:, i], used[:, j]
            with np.errstate(invalid="ignore"):
                ordinary &= np.abs(a - b) > _SAME * np.maximum(np.abs(a), np.abs(b))
        chosen = used[ordinary]
        columns: Any = [chosen[:, i] for i in range(used.shape[1])]  # the same arithmetic, on arrays
        for i, column in enumerate(self.weights(columns[0], columns[1:])):
            found[ordinary, i] = column
        for row in np.flatnonzero(~ordinary).tolist():
            weights = self.coefficients(float(t[row]), refreshes[row].tolist())
            found[row, : len(weights)] = weights
        return found

    def predict(self, context: Context, history: Sequence[Refresh]) -> Prediction:
        """Return the extrapolation ``(B, ...)`` to the present t, in the outputs' dtype, with every row's order.

        Raises:
            NeedsError: ``time="index"``, and the run was not declared.
        """
        if self.axis == "index":
            return self._in_run(context.timesteps).predict(context, history)
        known: dict[tuple[float, ...], tuple[Weights, int]] = {}
        rows = []
        for row in range(len(history[0].filled)):
            levels = tuple(refresh.t[row] for refresh in history if refresh.filled[row])
            if levels not in known:
                known[levels] = self._combination(context.t, levels) if levels else ((1.0,), 0)
            rows.append(known[levels])
        outputs = [refresh.output for refresh in history]
        order = tuple(used for _, used in rows)
        if len(known) == 1:
            return Prediction(_sum(outputs, rows[0][0]), order)
        return Prediction(_sum_of_rows(outputs, [weights for weights, _ in rows]), order)

    def correction(self, context: Context, history: Sequence[Refresh]) -> Tensor | None:
        """Return what makes up for the stand-ins since the refresh before; see `Substitute.correction`.

        Raises:
            RunError: the run does not visit the timesteps of the scheduler.
        """
        timesteps = context.timesteps
        if timesteps is None or len(history) < 2:
            return None
        if self.axis == "index":
            return self._in_run(timesteps).correction(context, history)
        known: dict[tuple[float, ...], Weights] = {}
        rows = []
        for row in range(len(history[0].filled)):
            levels = tuple(refresh.t[row] for refresh in history if refresh.filled[row])
            if levels not in known:
                known[levels] = self._correction(levels, timesteps)
            rows.append(known[levels])
        if not any(known.values()):
            return None
        return _sum_of_rows([refresh.output for refresh in history], rows, keep_dtype=False)

    def _in_run(self: S, timesteps: tuple[float, ...] | None) -> S:
        """Return the same on the axis of a run's steps.

        Raises:
            NeedsError: the run was not declared.
        """
        if timesteps is None:
            raise NeedsError(_NO_RUN.format(self.name))
        found: S | None = self._runs.get(timesteps)
        if found is None:
            if len(self._runs) >= _MOST_RUNS:
                self._runs.clear()
            # In a run of one step there is nothing to count.
            path = OutputPath.of_steps(timesteps) if len(timesteps) > 1 else None
            found = self._runs[timesteps] = evolve(self, time="t" if path is None else "path", path=path)
        return found

    def _correction(self, refreshes: Sequence[float], timesteps: tuple[float, ...]) -> Weights:
        """Return the weights of the remembered outputs in the correction of the newest; none where nothing was reused.

        ``correct * sum_k (G_k / G_r) (interpolated_k - extrapolated_k)`` over the steps k between the last two
        refreshes, with G the response of the sampler to the outputs of steps k and r, see `_effects`.
        """
        if len(refreshes) < 2:
            return ()
        now, last = (_step_of(level, timesteps) for level in refreshes[:2])
        if now - last < 2:
            return ()
        effect = self._effects(timesteps)[now]
        if effect[now] == 0:
            return ()
        total = [0.0] * len(refreshes)
        for step in range(last + 1, now):
            t, share = timesteps[step], effect[step] / effect[now]
            for place, weight in enumerate(self.corrected_coefficients(t, refreshes[1:], refreshes[0])):
                total[place] += share * weight
            for place, weight in enumerate(self._combination(t, refreshes[1:])[0]):
                total[place + 1] -= share * weight
        return tuple(total)

    def corrected_coefficients(self, t: float, refreshes: Sequence[float], following: float) -> Weights:
        """Return the weights of the next evaluation and of the refreshes before, once it has corrected a stand-in.

        The share ``correct`` of the polynomial through all of them, and the rest of the extrapolation; only the latter
        where two of them lie at one point of the axis and nothing else is left.
        """
        before = self._combination(t, refreshes)[0]
        levels = [following, *refreshes[: self.order + 1]]
        points, now = [self.time(level) for level in levels], self.time(t)
        used = _distinct(points)
        if not self.corrects or len(used) < 2 or not math.isfinite(now):
            return (0.0, *before)
        total = [0.0] * len(levels)
        for place, weight in zip(used, interpolating(now, [points[p] for p in used]), strict=True):
            total[place] = self.correct * weight
        for place, weight in enumerate(before):
            total[place + 1] += (1.0 - self.correct) * weight
        return tuple(total)

    def many_corrected_coefficients(self, t: Floats, refreshes: Floats, following: Floats) -> Floats:
        """Return what `corrected_coefficients` returns, at many points at once.

        Args:
            t: ``(M,)`` noise levels of the skipped evaluations.
            refreshes: ``(M, n)`` noise levels of the last refreshes of each, newest first.
            following: ``(M,)`` noise levels of the next evaluations.

        Returns:
            ``(M, 1 + n)`` float64; 0 for what is passed over.
        """
        found = np.zeros((len(t), 1 + refreshes.shape[1]))
        found[:, 1:] = self.many_coefficients(t, refreshes)
        if not self.corrects:
            return found
        used = np.column_stack([t, following, refreshes[:, : self.order + 1]])
        levels, place = np.unique(used, return_inverse=True)
        points = np.array([self.time(level) for level in levels.tolist()])[place.reshape(used.shape)]
        ordinary = np.isfinite(points).all(axis=1)
        for i, j in combinations(range(1, points.shape[1]), 2):
            a, b = points[:, i], points[:, j]
            with np.errstate(invalid="ignore"):
                ordinary &= np.abs(a - b) > _SAME * np.maximum(np.abs(a), np.abs(b))
        chosen = points[ordinary]
        columns: Any = [chosen[:, i] for i in range(points.shape[1])]
        found[ordinary] *= 1.0 - self.correct
        for i, column in enumerate(interpolating(columns[0], columns[1:])):
            found[ordinary, i] += self.correct * column
        for row in np.flatnonzero(~ordinary).tolist():
            weights = self.corrected_coefficients(float(t[row]), refreshes[row].tolist(), float(following[row]))
            found[row] = 0.0
            found[row, : len(weights)] = weights
        return found

    def _effects(self, timesteps: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
        """Return for every step r how the outputs up to r change what comes of the run, the model left out.

        What comes of it is the sample; where that does not depend on the output at r (an Euler step to sigma = 0 keeps
        nothing but its own output, of the data), the last latent that does.
        """
        found = self._known_effects.get(timesteps)
        if found is None:
            if self.scheduler is None:
                raise NeedsError(_NO_SCHEDULER.format(self.name))
            if self.steps == "euler":
                found = self._known_effects[timesteps] = _effects_of_euler(timesteps)
                return found
            response = impulse_response(self.scheduler, len(timesteps))
            if not same_timesteps(response.t, timesteps):
                raise RunError(
                    f"substitute {self.name!r} with correct={self.correct:g} needs the run of its scheduler: "
                    f"{self.scheduler.name!r} visits t = {shown(list(response.t))} in {len(timesteps)} steps, and this "
                    f"run was declared with {shown(list(timesteps))}; give the scheduler in use, or correct=0"
                )
            size = np.abs(response.c)
            lasts = [int(np.flatnonzero(column >= _NO_EFFECT * column.max())[-1]) for column in size.T]
            found = self._known_effects[timesteps] = tuple(tuple(response.c[last].tolist()) for last in lasts)
        return found

    def _check_correction(self) -> None:
        if not self.corrects:
            return
        if self.scheduler is None:
            raise NeedsError(_NO_SCHEDULER.format(self.name))
        if self.scheduler.evaluations_per_step != 1:
            raise SettingsError(
                f"substitute {self.name!r} with correct={self.correct:g}: scheduler {self.scheduler.name!r} makes "
                f"{self.scheduler.evaluations_per_step} evaluations a step, and a correction takes one; use correct=0"
            )

    def _resolved_axis(self) -> str:
        if self.axis == "t" or (self.axis == "scheduler" and self.scheduler is None):
            return "t"
        if self.axis == "index":
            return "index"
        if self.axis == "path":
            if self.path is None:
                raise NeedsError(
                    f"substitute {self.name!r} with time='path' needs the output's path, and there is no profile to "
                    "take it from; give profile=..., or use another time"
                )
            return "path"
        if self.scheduler is None:
            raise NeedsError(
                f"substitute {self.name!r} with time={self.axis!r} needs the noise schedule, and no scheduler is "
                "known; give scheduler=... beside it, or use time='t'"
            )
        return self.scheduler.time if self.axis == "scheduler" else self.axis

    def _combination(self, t: float, refreshes: Sequence[float]) -> tuple[Weights, int]:
        """Return the weights, and the order that they have."""
        levels = refreshes[: self.order + 1]
        if len(levels) == 1:
            return (1.0,), 0
        now, points = self.time(t), [self.time(level) for level in levels]
        used = _distinct(points) if math.isfinite(now) else [0]
        if len(used) == 1:
            return (1.0,), 0
        found = self.weights(now, [points[place] for place in used])
        if len(used) == used[-1] + 1:
            return found, len(used) - 1
        spread = [0.0] * (used[-1] + 1)
        for place, weight in zip(used, found, strict=True):
            spread[place] = weight
        return tuple(spread), len(used) - 1


def steps_by_differences(scheduler: Scheduler) -> bool:
    """Return whether a step adds the output times the difference of two t, up to one factor, whatever the timesteps.

    So does Euler in flow matching, where t is the noise level: also on the timesteps that a pipeline shifts for every
    picture, and where the model is called with a fraction of the scheduler's t.
    """
    return scheduler.family == "flow" and scheduler.name in _EULERS and not scheduler.stochastic


def _effects_of_euler(timesteps: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Return how the outputs change the sample, for every step alike: by the length of their own step, down to 0."""
    lengths = tuple(after - t for t, after in pairwise((*timesteps, 0.0)))
    return (lengths,) * len(timesteps)


def _step_of(level: float, timesteps: Sequence[float]) -> int:
    """Return the step whose t is nearest to a level.

    Raises:
        RunError: none is near.
    """
    step = min(range(len(timesteps)), key=lambda k: abs(timesteps[k] - level))
    if abs(timesteps[step] - level) > slack_of(timesteps):
        raise RunError(
            f"an evaluation at t={level:g} is at none of the declared timesteps, so that what was reused before it is "
            "not known; use correct=0 with samplers that evaluate between their steps"
        )
    return step


def _point(axis: str, scheduler: Scheduler | None, t: float) -> float:
    """Return the point of an axis that belongs to t."""
    if axis == "t" or scheduler is None:
        return t
    level = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = scheduler.alpha(level).item(), scheduler.sigma(level).item()
    if axis == "log-snr":
        if alpha <= 0:
            return -math.inf
        return math.inf if sigma <= 0 else 2.0 * (math.log(alpha) - math.log(sigma))
    if scheduler.family == "flow":
        return sigma
    return sigma / alpha if alpha > 0 else math.inf


def _distinct(points: Sequence[float]) -> list[int]:
    """Return the places of the points to use, newest first: finite ones, none of them twice.

    Without a finite newest point there is nothing to extrapolate from: the newest alone.
    """
    used = [0]
    if not math.isfinite(points[0]):
        return used
    for place in range(1, len(points)):
        point = points[place]
        if math.isfinite(point) and not any(
            abs(point - points[other]) <= _SAME * max(abs(point), abs(points[other])) for other in used
        ):
            used.append(place)
    return used


def interpolating(now: float, points: Sequence[float]) -> Weights:
    """Return the weights of the polynomial through outputs at ``points``, read at ``now`` (Lagrange's form)."""
    return tuple(
        math.prod((now - other) / (point - other) for q, other in enumerate(points) if q != p)
        for p, point in enumerate(points)
    )


def derivatives(points: Sequence[float], differences: Differences) -> list[list[float]]:
    """Return the derivatives at the newest point as combinations of the outputs.

    Args:
        points: where the outputs lie, newest first, n + 1 distinct ones.
        differences: ``"newton"``: the derivatives of the polynomial through the outputs; ``"taylorseer"``: quotients
            of quotients, ``d_i = (d_{i-1} - d_{i-1} before) / (the last distance)`` (TaylorSeer, arXiv 2503.06923),
            accurate to first order, on uneven points from d_2 on not even that.

    Returns:
        n + 1 rows, the i-th with the n + 1 weights of the i-th derivative.
    """
    count = len(points)
    if differences == "newton":
        return _newton(points)
    quotients = [[float(place == p) for p in range(count)] for place in range(count)]
    found = [quotients[0]]
    for _ in range(1, count):
        quotients = [
            [(a - b) / (points[place] - points[place + 1]) for a, b in zip(now, before, strict=True)]
            for place, (now, before) in enumerate(pairwise(quotients))
        ]
        found.append(quotients[0])
    return found


def _newton(points: Sequence[float]) -> list[list[float]]:
    """Differentiate Newton's form, sum_m f[x_0..x_m] prod_{j<m} (x - x_j), at x_0, n times."""
    count = len(points)
    table = [[float(place == p) for p in range(count)] for place in range(count)]
    divided = [table[0]]
    for m in range(1, count):
        table = [
            [(a - b) / (points[place] - points[place + m]) for a, b in zip(now, before, strict=True)]
            for place, (now, before) in enumerate(pairwise(table))
        ]
        divided.append(table[0])
    found = [[0.0] * count for _ in range(count)]
    basis = [1.0]  # the product so far, as powers of x - x_0
    for m in range(count):
        for i, coefficient in enumerate(basis):
            scale = coefficient * math.factorial(i)
            found[i] = [have + scale * more for have, more in zip(found[i], divided[m], strict=True)]
        shift = points[0] - points[m]
        basis = [high + shift * low for high, low in zip([0.0, *basis], [*basis, 0.0], strict=True)]
    return found


def _sum(outputs: Sequence[Tensor], weights: Weights) -> Tensor:
    """Return the sum with the same weights in every row; the newest output itself where it is the only one."""
    newest = outputs[0]
    if weights == (1.0,):
        return newest
    dtype = torch.promote_types(newest.dtype, torch.float32)
    total = newest.to(dtype) * weights[0]
    for output, weight in zip(outputs[1:], weights[1:], strict=False):
        if weight:
            # In two operations, as below: a row gives the same bits whatever the histories of the others.
            total += output.to(dtype) * weight
    return total.to(newest.dtype)


def _sum_of_rows(outputs: Sequence[Tensor], weights: Sequence[Weights], *, keep_dtype: bool = True) -> Tensor:
    """Return the sum with weights of every row's own; in float32 at least where the dtype need not be kept."""
    newest = outputs[0]
    dtype = torch.promote_types(newest.dtype, torch.float32)
    total = None
    for place, output in enumerate(outputs):
        column = [row[place] if place < len(row) else 0.0 for row in weights]
        factor = _on(column, dtype, newest.device).reshape(-1, *[1] * (newest.ndim - 1))
        part = output.to(dtype) * factor
        if not all(column):
            # Where a row does not count there may be anything, and 0 * inf is no 0.
            part = torch.where(factor != 0, part, 0.0)
        total = part if total is None else total.add_(part)
    if total is None:
        return newest
    return total.to(newest.dtype) if keep_dtype else total


def _on(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, without waiting for it."""
    made = torch.tensor(values, dtype=dtype)
    return made if device.type == "cpu" else made.pin_memory().to(device, non_blocking=True)
