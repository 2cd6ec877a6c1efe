"""What a policy is told: `RunInfo` before the first evaluation, `Step` at each."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.host import index_on
from cachepolicies.base.layout import Layout
from cachepolicies.base.units import row_rms

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile

_T_TOLERANCE = 1e-6
"""Two values of t closer than this fraction of the run's largest |t| are the same noise level (float32 rounding)."""


@frozen(eq=False)
class RunInfo:
    """What is known of a run before its first evaluation.

    Attributes:
        first_t: t of the first evaluation, in the units the denoiser is called with.
        timesteps: t of the first evaluation of every step, in order of visit without repeats, or ``None`` when the
            run was not declared.
        layout: rows of the batch and the decisions they follow.
        shape: ``(B, ...)`` of the latent.
        dtype: of the latent.
        device: of the latent.
        profile: what calibration measured, or ``None``.
        announced_steps: number of steps, where the caller knows it without the timesteps.
    """

    first_t: float
    timesteps: tuple[float, ...] | None
    layout: Layout
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    profile: Profile | None = None
    announced_steps: int | None = None
    direction: int = field(init=False, repr=False)
    """Sign of the change of t along the run: -1 (noise to data) unless the declared timesteps rise."""

    _keys: tuple[float, ...] = field(init=False, repr=False)
    _slack: float = field(init=False, repr=False)

    @direction.default
    def _direction_of_timesteps(self) -> int:
        return direction_of(self.timesteps)

    @_keys.default
    def _ascending_keys(self) -> tuple[float, ...]:
        return tuple(self.direction * t for t in self.timesteps or ())

    @_slack.default
    def _t_slack(self) -> float:
        levels = self.timesteps or (self.first_t,)
        gaps = [abs(a - b) for a, b in pairwise(levels)]
        return min(_T_TOLERANCE * max(abs(t) for t in levels), 0.5 * min(gaps, default=math.inf))

    @property
    def decisions(self) -> int:
        """How many decisions a step takes: one a sample, or one for the batch."""
        return self.layout.decisions

    @property
    def num_steps(self) -> int | None:
        """Number of steps, or ``None`` when neither the timesteps nor their number were declared."""
        return self.announced_steps if self.timesteps is None else len(self.timesteps)

    def index(self, t: float) -> int | None:
        """Return the step that t lies in, from the declared timesteps; ``None`` when the run was not declared.

        A t between two timesteps (the midpoint of a two-stage step) belongs to the earlier one. The answer depends on
        t only, never on how many calls came before.
        """
        if self.timesteps is None:
            return None
        return max(0, bisect.bisect_right(self._keys, self.direction * t + self._slack) - 1)

    def in_first(self, fraction: float, t: float) -> bool:
        """Return whether t lies in the first ``fraction`` of the run.

        Measured in steps, rounded to whole ones, when the run was declared; otherwise in t, from the first t down
        to 0.
        """
        index = self.index(t)
        if index is not None and self.num_steps is not None:
            return index < round(fraction * self.num_steps)
        return self.first_t - t < fraction * self.first_t


def direction_of(timesteps: Sequence[float] | None) -> int:
    """Return +1 if the timesteps rise, else -1."""
    return 1 if timesteps is not None and len(timesteps) > 1 and timesteps[-1] > timesteps[0] else -1


HostRead = Callable[[Sequence[Tensor]], "list[list[float]]"]


@frozen(eq=False)
class Step:
    """One evaluation that the sampler asks for, as the policy sees it.

    Attributes:
        x: ``(B, ...)`` the latent, in the model's dtype; not to be changed.
        t: noise level, in the units the denoiser is called with.
        branch: the branch that decides; see ``branches`` for a policy that decides by branch.
        index: step of the run that t lies in, or ``None`` when the run was not declared.
        run: what is known of the run.
        signals: ``(B, ...)`` values from inside the model, by name, as declared in the policy's needs.
        place: of the site that is decided on; ``""`` where the site has one place, or the policy decides once a call.
        input: ``(B, ...)`` what goes into the place; ``None`` unless it is declared in the policy's needs.
    """

    x: Tensor
    t: float
    branch: str
    index: int | None
    run: RunInfo
    _read: HostRead = field(repr=False)
    signals: Mapping[str, Tensor] = field(factory=dict)
    place: str = ""
    input: Tensor | None = field(default=None, repr=False)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branch of every decision: that of the call, but in a batch whose copies decide apart.

        There the decisions belong to ``"copy 1"``, ``"copy 2"``, and so on in the order of the batch; see
        `CachePolicy.by_branch`.
        """
        return self.run.layout.branches_of(self.branch)

    def in_first(self, fraction: float) -> bool:
        """Return whether the step lies in the first ``fraction`` of the run; see `RunInfo.in_first`."""
        if self.index is not None and self.run.num_steps is not None:
            return self.index < round(fraction * self.run.num_steps)
        return self.run.in_first(fraction, self.t)

    def rms(self, values: Tensor) -> tuple[float, ...]:
        """Return the RMS of ``values`` ``(B, ...)`` for each decision, read on the host in one synchronisation."""
        return self.run.layout.pool_rms(self._read((row_rms(values),))[0])

    def merge(self, kept: Tensor | None, fresh: Tensor, reuse: Sequence[bool]) -> Tensor:
        """Return what a policy remembers of every row after this step, as a new tensor.

        Args:
            kept: ``(B, ...)`` what was remembered before, or ``None`` if nothing was.
            fresh: ``(B, ...)`` what holds now, for example ``step.x``.
            reuse: one entry for each decision: ``True`` keeps the old rows, ``False`` takes the fresh ones.

        Returns:
            ``(B, ...)`` of the dtype of ``fresh``, detached. The arguments are not changed.
        """
        fresh = fresh.detach()
        rows = self.run.layout.select([not keep for keep in reuse])
        if kept is None or len(rows) == fresh.shape[0]:
            return fresh.clone()
        if not rows:
            return kept
        index = index_on(rows, fresh.device)
        return kept.index_copy(0, index, fresh.index_select(0, index))

    def read(self, *per_row: Tensor) -> list[list[float]]:
        """Read several ``(B,)`` tensors on the host in one synchronisation.

        This is the only way for a policy to look at a tensor's values: what the guards have to know of earlier
        evaluations travels along, so that a step never waits for the device twice.
        """
        return self._read(per_row)
