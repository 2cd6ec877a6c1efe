"""Profiles made by hand: with constant curves, of made-up outputs, and of runs that are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from cachepolicies.profiles import PublishedProfile
from cachepolicies.profiles.schema import Curve, ModelInfo, Profile, SchedulerInfo
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE


def linear_profile(
    timesteps: Sequence[float], alpha_x: float = 0.5, alpha_t: float = 1e-3, class_name: str = "Counted"
) -> Profile:
    """A profile with constant sensitivities, for tests in which their values do not matter."""

    def curve(value: float) -> Curve:
        return Curve(tuple(timesteps), np.full((len(timesteps), 2), value))

    return Profile(
        name="constant",
        model=ModelInfo(class_name=class_name),
        prediction_type="velocity",
        latent_shape=SHAPE,
        scheduler=SchedulerInfo(name="flow-euler", family="flow"),
        timesteps=tuple(timesteps),
        samples=2,
        curves={"alpha_x": curve(alpha_x), "alpha_t": curve(alpha_t)},
    )


def distances(outputs: np.ndarray) -> np.ndarray:
    """(N, N, S) RMS differences of outputs (N, S, d)."""
    return np.sqrt(((outputs[:, None] - outputs[None]) ** 2).mean(axis=-1))


def outputs(steps=9, samples=3, numel=40, seed=0):
    """Random walks, ``(steps, samples, numel)``."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(steps, samples, numel)), axis=0)


def profile_of(y, dtype=np.float64, weight=True, **changes):
    """A profile of made-up outputs; the latent moves as the output does."""
    steps, samples = y.shape[:2]
    scheduler = FlowEuler()
    ts = scheduler.timesteps(steps)
    table = distances(y).astype(dtype)
    constant = np.ones((steps, samples))
    curves = {"alpha_x": Curve(ts, 0.5 * constant), "alpha_t": Curve(ts, 1e-3 * constant)}
    if weight:
        curves["weight"] = Curve(ts, np.linspace(2, 0.5, steps)[:, None] * constant)
    fields = {
        "name": "made-up",
        "model": ModelInfo(class_name="Counted"),
        "prediction_type": "velocity",
        "latent_shape": SHAPE,
        "scheduler": SchedulerInfo(scheduler.name, scheduler.family, scheduler.config),
        "timesteps": ts,
        "final_t": 0.0,
        "samples": samples,
        "curves": curves,
        "tables": {"change": table, "displacement": table},
    }
    return Profile(**{**fields, **changes})


def trajectory_profile(steps=40, samples=3, path=None, seed=0, **changes):
    """A profile of runs that are known in closed form: y(t) as given, or smooth; x moves at a steady pace."""
    rng = np.random.default_rng(seed)
    ts = np.linspace(1000, 25, steps)
    basis = rng.standard_normal((samples, 16))
    other = rng.standard_normal((samples, 16))
    path = path or (lambda s: np.sin(2.0 * s)[:, None, None] * basis + np.exp(-s)[:, None, None] * other)
    outputs = path(ts / 1000)
    latents = (ts / 1000)[:, None, None] * basis
    curve = Curve(tuple(ts), rng.uniform(0.2, 0.5, (steps, samples)))
    fields = {
        "name": "known",
        "model": ModelInfo("Net"),
        "prediction_type": "velocity",
        "latent_shape": (16,),
        "scheduler": SchedulerInfo("flow-euler", "flow"),
        "timesteps": tuple(ts),
        "samples": samples,
        "curves": {"alpha_x": curve, "alpha_t": Curve(tuple(ts), curve.values / 500)},
        "tables": {"change": distances(outputs), "displacement": distances(latents)},
    }
    return Profile(**{**fields, **changes})


def as_published(profile: Profile, **changes: Any) -> PublishedProfile:
    """Return the numbers of a profile as if somebody else had published them."""
    fields = {a.name: getattr(profile, a.name) for a in attrs.fields(Profile) if a.init}
    return PublishedProfile(**{**fields, **changes})
