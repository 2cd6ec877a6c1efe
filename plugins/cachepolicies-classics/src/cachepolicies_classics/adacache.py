"""AdaCache (Kahatapitiya et al., arXiv 2411.02397): how long to hold follows from how much one block has changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import ge, instance_of, optional
from torch import Tensor

from cachepolicies import (
    CachePolicy,
    Decision,
    InputError,
    Needs,
    NeedsError,
    PolicySettings,
    RunInfo,
    SettingsError,
    Setup,
    Step,
)
from cachepolicies.adapters import CROSS, SPATIAL, TEMPORAL
from cachepolicies_classics._reasons import Why

FAST = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (1.0, 1))
"""The codebook published for 30 steps."""

MOTION_SCALE, MOTION_POWER, MOTION_GRADIENT = 0.385, 8, 10.0
"""Constants of the motion regularisation, as published."""


def _pairs(values: Iterable[Iterable[float]]) -> tuple[tuple[float, int], ...]:
    found = []
    for pair in values:
        limit, steps = pair
        if isinstance(steps, bool) or int(steps) != steps:
            raise TypeError(f"{steps!r} is no number of steps")
        found.append((float(limit), int(steps)))
    return tuple(found)


def _fractions(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values)


@frozen
class AdaCache(PolicySettings):
    """Compute attention and MLP of every block, and hold them for as many steps as the change of one block allows.

    At each computed step the output of one attention is compared with that of the computed step before: ``c = |r' -
    r|_1 / |r'|_1``, divided by the steps between. A codebook says how many steps later everything is computed again.
    With motion regularisation c is multiplied by how much the frames of r differ, so that a film with much motion is
    computed more often.

    It reads one number at each computed step. It cuts at the site ``"attention+mlp"``; ``hold`` stands in. It costs the
    memory of one output for each attention and MLP, and branch, and of the one that is compared. It helps with videos
    whose content differs in how fast it settles. What users run into: a codebook is made for a number of steps, and
    does not carry over to another.

    Published for Open-Sora at 30 steps: the default codebook ("fast"), and ``{.08: 3, .16: 2, .24: 1}`` ("slow"); at
    100 steps ``{.03: 12, .05: 10, .07: 8, .09: 6, .11: 4, 1: 3}``; block 13 of 28, its temporal attention. What is
    compared there is behind the block's gate; here it is what the attention returns.

    Attributes:
        codebook: pairs of a limit of c and of steps, limits rising: the steps of the first limit above c count, those
            of the last where c is above all.
        block: number of the block whose attention is compared; ``None`` for the middle of the stack.
        first: steps, from the first, that are computed throughout.
        last: steps at the end that are computed throughout.
        frames: how many frames the tokens of that attention have, one frame's next to each other, for the motion
            regularisation; ``None`` for none.
        motion: first and last step of the motion regularisation, as fractions of the run.
    """

    name: ClassVar[str] = "adacache"
    site: ClassVar[str] = "attention+mlp"

    codebook: tuple[tuple[float, int], ...] = field(default=FAST, converter=_pairs)
    block: int | None = field(default=None, validator=optional(instance_of(int)))
    first: int = field(default=2, validator=[instance_of(int), ge(1)])
    last: int = field(default=2, validator=[instance_of(int), ge(0)])
    frames: int | None = field(default=None, validator=optional(instance_of(int)))
    motion: tuple[float, ...] = field(default=(4 / 30, 26 / 30), converter=_fractions)

    def __attrs_post_init__(self) -> None:
        limits = [limit for limit, _ in self.codebook]
        rising = bool(limits) and all(map(math.isfinite, limits)) and limits == sorted(set(limits))
        if not rising or any(steps < 1 for _, steps in self.codebook):
            raise SettingsError(
                f"adacache: codebook is {self.codebook}; give pairs of a limit, rising, and a number of steps from 1"
            )
        numbers = [value for value in self.motion if isinstance(value, int | float)]
        if len(numbers) != 2 or len(self.motion) != 2 or not 0.0 <= numbers[0] <= numbers[1] <= 1.0:
            raise SettingsError(f"adacache: motion is {self.motion}; give two fractions of the run, the lower first")
        if self.frames is not None and self.frames < 2:
            raise SettingsError(f"adacache: frames is {self.frames}; motion takes two, None leaves it out")

    def resolve(self, setup: Setup) -> Adapts:
        """Return the policy for the places of the site.

        Raises:
            NeedsError: the site has no attention.
            SettingsError: there is no such block.
        """
        kinds = {} if setup.site is None else setup.site.kinds
        chosen = next(
            (found for kind in (TEMPORAL, SPATIAL, CROSS) if (found := [p for p, k in kinds.items() if k == kind])), []
        )
        if setup.site is not None and not chosen:
            raise NeedsError(
                f"adacache compares the outputs of an attention, and site {setup.site.name!r} has none that is known; "
                "leave the site out, or use site='attention'"
            )
        number = len(chosen) // 2 if self.block is None else self.block
        if chosen and not -len(chosen) <= number < len(chosen):
            raise SettingsError(f"adacache: block is {number}, and {len(chosen)} blocks have an attention of that kind")
        return Adapts(self, chosen[number] if chosen else "")


@frozen(eq=False)
class _Seen:
    """What is known between the steps of a run, an entry for each deciding sample.

    Attributes:
        due: number of the step at which everything is computed next.
        at: number of the last computed step, -1 for none.
        motion: of the frames at that step, regularised; ``nan`` for none.
        output: ``(B, ...)`` of the attention at that step.
    """

    due: tuple[int, ...]
    at: tuple[int, ...]
    motion: tuple[float, ...]
    output: Tensor | None = None


@frozen
class Adapts(CachePolicy):
    """`AdaCache` on a site.

    Attributes:
        settings: as given.
        probe: place of the attention that is compared.
    """

    name: ClassVar[str] = "adacache"

    settings: AdaCache
    probe: str

    @property
    def needs(self) -> Needs:
        """The run length: intervals are counted in its steps."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every interval is one step."""
        return any(steps > 1 for _, steps in self.settings.codebook)

    def start(self, run: RunInfo) -> _Seen:
        """Return what is known: nothing yet."""
        count = run.decisions
        return _Seen((0,) * count, (-1,) * count, (math.nan,) * count)

    def decide(self, step: Step, state: _Seen) -> Decision:
        """Hold until the interval is over."""
        index, steps = step.index or 0, step.run.num_steps or 0
        if index < self.settings.first or index >= steps - self.settings.last:
            return Decision.same(False, Why.ALWAYS, step.run.decisions)
        reuse = tuple(at >= 0 and at != index < due for due, at in zip(state.due, state.at, strict=True))
        return Decision(reuse, tuple(Why.HELD if held else Why.KEY for held in reuse))

    def observe_place(self, step: Step, place: str, decision: Decision, output: Tensor, state: _Seen) -> _Seen:
        """Compare the attention with what it was, and look up how long everything is held."""
        if place not in ("", self.probe) or all(decision.reuse):
            return state
        index = step.index or 0
        now = output.detach().flatten(1).float()
        kept = step.merge(state.output, now, decision.reuse)
        changes, motions = self._read(step, now, state.output)
        due, at, motion = list(state.due), list(state.at), list(state.motion)
        for d, held in enumerate(decision.reuse):
            if held or at[d] == index:
                continue
            between = max(index - at[d], 1)
            c = changes[d] / between
            regularised = (motions[d] / MOTION_SCALE) ** MOTION_POWER
            low, high = self.settings.motion
            if not math.isnan(regularised) and low <= index / max(step.run.num_steps or 1, 1) <= high:
                gradient = 0.0 if math.isnan(motion[d]) else abs(MOTION_GRADIENT * (regularised - motion[d]) / between)
                c *= regularised + gradient
            interval = next((n for limit, n in self.settings.codebook if c < limit), self.settings.codebook[-1][1])
            due[d] = index + (interval if at[d] >= 0 else 1)
            at[d], motion[d] = index, regularised
        return _Seen(tuple(due), tuple(at), tuple(motion), kept)

    def _read(self, step: Step, now: Tensor, before: Tensor | None) -> tuple[list[float], list[float]]:
        """Return how much an output has changed, and how much its frames differ, for each deciding sample."""
        same = before is not None and before.shape == now.shape
        then = before if same and before is not None else now
        values = [(now - then).abs().sum(1), then.abs().sum(1)]
        frames = self.settings.frames
        if frames is not None:
            if now.shape[1] % frames:
                raise InputError(
                    f"adacache: the attention at {self.probe!r} returns {now.shape[1]} numbers a sample, which are no "
                    f"{frames} frames; correct frames=, or leave it out"
                )
            films = now.reshape(now.shape[0], frames, -1)
            sizes = films.abs().sum(2)
            differences = (films[:, 1:] - films[:, :-1]).abs().sum(2)
            values.append((differences / (sizes[:, 1:] + sizes[:, :-1]).clamp(min=torch.finfo(now.dtype).tiny)).mean(1))
        read = step.read(*values)
        rows = [step.run.layout.rows_of(d) for d in range(step.run.decisions)]
        sums = [[sum(column[row] for row in of) for column in read] for of in rows]
        changes = [moved / size if same and size else math.inf for moved, size, *_ in sums]
        motions = [math.nan if frames is None else found[2] / len(of) for found, of in zip(sums, rows, strict=True)]
        return changes, motions
