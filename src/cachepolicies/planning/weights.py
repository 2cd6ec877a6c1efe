"""The weight of every step of a run: how much an error of the output there changes the finished sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cachepolicies.base.errors import NeedsError, ProfileError, SettingsError, nearest_match_hint
from cachepolicies.base.settings import shown
from cachepolicies.base.timesteps import same_timesteps
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.profiles.schema import RECALIBRATE, Curve, Profile
from cachepolicies.schedulers.impulse import impulse_response
from cachepolicies.schedulers.resolve import scheduler_of

WeightKind: TypeAlias = Literal["geometric", "measured", "bound", "uniform"]
"""Where the weights of a plan are from."""

CURVES_OF: Mapping[WeightKind, tuple[str, ...]] = {
    "geometric": ("weight",),
    "measured": ("weight",),
    "bound": ("alpha_x",),
    "uniform": (),
}
"""The curves of a profile that each kind of weights is made from."""


def step_weights(
    profile: Profile,
    kind: WeightKind = "measured",
    timesteps: Sequence[float] | None = None,
    scheduler: Scheduler | None = None,
) -> NDArray[np.float64]:
    """Return the weight of every step, RMS change of the sample per RMS change of the output at the step.

    - ``"measured"``: the mean over the samples of the profile's curve ``weight``. A weight grows with the length of
      its step, so what is interpolated, between the steps that were measured and for other timesteps, is
      ``weight / |t_k - t_{k+1}|``: geometrically, along the calibrated timesteps as if they were evenly spaced, and
      constant beyond their ends. The last step ends at the profile's ``final_t``; without one, at 0, or at -1 where t
      counts the noising steps of a variance-preserving noise schedule from 0.
    - ``"geometric"``: the same with the geometric mean over the samples, which one sample with weights many times the
      others' does not decide; the mean at a step where a sample has the weight 0.
    - ``"bound"``: `cachepolicies.calibration.ImpulseResponse.bound` with the profile's mean alpha_x; for a one-step
      sampler ``|B_k| prod_{j > k} (|A_j| + |B_j| alpha_x(t_j))``. Never below the true one, and often far above.
    - ``"uniform"``: 1 everywhere.

    Args:
        profile: what calibration measured.
        kind: which of these.
        timesteps: t of the first evaluation of every step, strictly decreasing; the profile's own if ``None``.
        scheduler: for ``"bound"``, the scheduler of the run; the profile's own if ``None``.

    Returns:
        ``(N,)`` float64, >= 0, one a timestep.

    Raises:
        NeedsError: the profile has no curve ``weight`` or ``alpha_x``, or no timesteps; or its scheduler is not known.
        ProfileError: the curve ``weight`` has points that are none of the profile's timesteps; or a weight is not a
            finite number.
        SettingsError: an unknown kind, timesteps that do not decrease or are not the scheduler's, or a scheduler that
            is not linear in the outputs or cannot be rebuilt.
    """
    if kind not in CURVES_OF:
        raise SettingsError(f"weights {shown(kind)} are unknown: {nearest_match_hint(str(kind), CURVES_OF)}")
    visited = profile.timesteps if timesteps is None else tuple(float(t) for t in timesteps)
    if not visited:
        where = f"profile {profile.name!r} has none, so give timesteps=" if timesteps is None else "none are given"
        raise NeedsError(f"the weights of a run need its timesteps: {where}")
    if not all(math.isfinite(t) for t in visited) or any(after >= before for before, after in pairwise(visited)):
        raise SettingsError(f"timesteps are {shown(visited)}; give finite numbers, strictly decreasing")
    kinds: dict[str, Callable[[], NDArray[np.float64]]] = {
        "geometric": lambda: _measured(profile, visited, kind),
        "measured": lambda: _measured(profile, visited, kind),
        "bound": lambda: _bound(profile, visited, scheduler),
        "uniform": lambda: np.ones(len(visited)),
    }
    weights = kinds[kind]()
    if not np.isfinite(weights).all():
        step = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise ProfileError(
            f"profile {profile.name!r}: the {kind} weight of step {step}, t = {visited[step]:g}, is {weights[step]}; "
            "use other weights"
        )
    return weights


def _needed_curve(profile: Profile, name: str, kind: str, remedy: str) -> Curve:
    if name not in profile.curves:
        raise NeedsError(
            f"{kind} weights need the curve {name!r}, which profile {profile.name!r} does not have (it has: "
            f"{', '.join(sorted(profile.curves)) or 'none'}); {remedy}"
        )
    return profile.curves[name]


def _measured(profile: Profile, visited: Sequence[float], kind: str) -> NDArray[np.float64]:
    curve = _needed_curve(
        profile, "weight", kind, "calibrate again with weights, or plan with weights='bound' or 'uniform'"
    )
    calibrated = {t: k for k, t in enumerate(profile.timesteps)}
    if strangers := [t for t in curve.t if t not in calibrated]:
        raise ProfileError(
            f"profile {profile.name!r}: curve 'weight' has a point at t = {strangers[0]:g}, which is none of its "
            f"timesteps, so that the length of its step is not known; {RECALIBRATE}"
        )
    points = np.array([calibrated[t] for t in curve.t])
    lengths = _lengths(profile, profile.timesteps)[points]
    mean = _geometric_mean(curve) if kind == "geometric" else curve.mean()
    long = lengths > 0  # not a last step that ends where it begins
    if not long.any():
        raise ProfileError(
            f"profile {profile.name!r}: curve 'weight' has no step of a length that is known; {RECALIBRATE}"
        )
    # by the calibrated steps and not by t: a sampler's steps are short where its noise levels ask for it
    where = np.interp(visited, profile.timesteps[::-1], np.arange(len(profile.timesteps))[::-1])
    own = _lengths(profile, visited)
    weights = own * _geometric(where, points[long], mean[long] / lengths[long])
    if own[-1] == 0:
        weights[-1] = mean[-1]  # a last step of no length is taken for the calibrated last step
    return weights


def _geometric_mean(curve: Curve) -> NDArray[np.float64]:
    values = np.asarray(curve.values, dtype=np.float64)
    positive: NDArray[np.bool_] = np.all(values > 0, axis=1)
    logarithms = np.log(np.where(positive[:, None], values, 1.0))
    found: NDArray[np.float64] = np.where(positive, np.exp(logarithms.mean(axis=1)), curve.mean())
    return found


def _geometric(where: NDArray[Any], points: NDArray[Any], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate values >= 0 by their logarithms; linearly beside a zero, and constant beyond the ends."""
    right = np.minimum(np.searchsorted(points, where).clip(min=1), len(points) - 1)
    left = np.maximum(right - 1, 0)
    share = ((where - points[left]) / np.maximum(points[right] - points[left], 1)).clip(0.0, 1.0)
    low, high = values[left], values[right]
    linear = low + share * (high - low)
    found: NDArray[np.float64] = np.where((low > 0) & (high > 0), low ** (1 - share) * high**share, linear)
    return found


def _lengths(profile: Profile, timesteps: Sequence[float]) -> NDArray[np.float64]:
    """Return how far every step goes in t, ``(N,)``; 0 for a last step that is not known to go anywhere."""
    end = profile.final_t
    if end is None:
        discrete = profile.scheduler is not None and profile.scheduler.family == "vp"
        end = -1.0 if discrete else 0.0
    lengths: NDArray[np.float64] = np.maximum(-np.diff([*timesteps, end]), 0.0)
    return lengths


def _bound(profile: Profile, visited: Sequence[float], scheduler: Scheduler | None) -> NDArray[np.float64]:
    alpha_x = _needed_curve(profile, "alpha_x", "bound", RECALIBRATE)
    if scheduler is None:
        scheduler = None if profile.scheduler is None else scheduler_of(profile.scheduler)
    if scheduler is None:
        known = (
            "does not say its scheduler"
            if profile.scheduler is None
            else (f"has the scheduler {profile.scheduler.name!r}, which is not registered")
        )
        raise NeedsError(f"bound weights need the scheduler: profile {profile.name!r} {known}; give scheduler=")
    response = impulse_response(scheduler, len(visited))
    own = np.array([response.t[k] for k in response.first])
    if not same_timesteps(own.tolist(), visited):
        raise SettingsError(
            f"scheduler {scheduler.name!r} visits t = {shown(own.tolist())} in {len(visited)} steps, not the timesteps "
            f"{shown(list(visited))}; bound weights need the scheduler that has them: give scheduler="
        )
    return response.bound(np.array([alpha_x.at(t, "linear") for t in response.t]))
