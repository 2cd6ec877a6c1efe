"""Replaying a policy on the calibration runs: how many evaluations it would take, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from attrs import define
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import NeedsError
from cachepolicies.base.host import read_together
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.policy import CachePolicy, Decision
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.profiles.schema import RECALIBRATE, Profile

_WIDTH = 512
"""Entries of a replayed latent: means of magnitudes over them are those of a Gaussian to about 4 %."""

_SEED = 7

FILTERED = "filtered_change"
"""Name of the table of changes of the latent through SeaCache's filter."""

_TABLE_OF: Mapping[str, str] = {"spatial-latent": FILTERED}
"""Signals whose changes a profile keeps under another name than ``signal_change.<signal>``."""


@define(eq=False)
class CalibrationRuns:
    """The runs of a profile, as points that have the distances that were measured.

    A latent is a point of few dimensions whose RMS distance from those of the other steps is the table
    ``displacement``; likewise the outputs and the table ``change``. A signal is a number that grows by the relative
    change that was measured. So a policy that looks at distances and relative changes decides as on the runs
    themselves, as long as what reuse does to them is small.

    Attributes:
        profile: with the tables ``displacement`` and ``change``.
    """

    profile: Profile

    def evaluations(self, policy: CachePolicy) -> NDArray[np.float64]:
        """Return how many steps of each run a policy evaluates, ``(S,)`` float64.

        Raises:
            NeedsError: it looks at a signal whose changes the profile does not have.
        """
        steps = len(self.profile.timesteps)
        samples = self.latents.shape[1]
        signals = {name: self._signal(name) for name in policy.needs.signals}
        info = RunInfo(
            self.profile.timesteps[0],
            self.profile.timesteps,
            Layout(samples),
            (samples, self.latents.shape[2]),
            torch.float64,
            torch.device("cpu"),
            self.profile,
        )
        state, count = policy.start(info), np.zeros(samples)
        held = self.outputs[0]
        for k in range(steps):
            seen = {name: values[k] for name, values in signals.items()}
            entering = self.latents[k] if policy.needs.input else None
            t = self.profile.timesteps[k]
            step = Step(self.latents[k], t, "default", k, info, read_together, seen, "", entering)
            wanted = policy.decide(step, state)
            reuse = wanted.reuse if k else (False,) * samples
            done = wanted if k else Decision.same(False, EngineReason.NOTHING_TO_REUSE, samples)
            evaluated = torch.tensor([not again for again in reuse])
            held = torch.where(evaluated[:, None], self.outputs[k], held)
            state = policy.observe(step, done, held, state)
            count += evaluated.numpy()
        return count

    @cached_property
    def latents(self) -> Tensor:
        """``(N, S, width)`` float64."""
        return _points(self._table("displacement"))

    @cached_property
    def outputs(self) -> Tensor:
        """``(N, S, width)`` float64."""
        return _points(self._table("change"))

    def _signal(self, name: str) -> Tensor:
        changes = self._table(_TABLE_OF.get(name, f"signal_change.{name}"), f"signal {name!r}")
        grown = np.cumprod(np.concatenate([np.ones((1, changes.shape[1])), 1.0 + changes]), axis=0)
        return torch.from_numpy(grown)[:, :, None]

    def _table(self, name: str, what: str = "a policy's threshold") -> NDArray[np.float64]:
        if name not in self.profile.tables:
            raise NeedsError(
                f"to solve for a budget, the table {name!r} is needed ({what}), which profile {self.profile.name!r} "
                f"does not have (it has: {', '.join(sorted(self.profile.tables)) or 'none'}); give the threshold "
                f"itself, or {RECALIBRATE}"
            )
        return np.asarray(self.profile.tables[name], dtype=np.float64)


def _spread(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn few coordinates at random into many, so that means over them say what they say of a latent."""
    width = max(_WIDTH, coordinates.shape[1])
    basis, _ = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((width, coordinates.shape[1])))
    found: NDArray[np.float64] = coordinates @ basis.T * np.sqrt(width)
    return found


def _points(distances: NDArray[np.float64]) -> Tensor:
    """Return points ``(N, S, width)`` with RMS distances ``(N, N, S)``, the first at 0: multidimensional scaling."""
    found = []
    for s in range(distances.shape[2]):
        squared = distances[:, :, s] ** 2
        gram = 0.5 * (squared[0][:, None] + squared[0][None, :] - squared)
        values, vectors = np.linalg.eigh(gram)
        found.append(_spread(vectors * np.sqrt(values.clip(min=0.0))))
    return torch.from_numpy(np.stack(found, axis=1))
