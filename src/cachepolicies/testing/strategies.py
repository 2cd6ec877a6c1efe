"""Hypothesis strategies for what a plugin meets: runs, batches, branches, histories, and denoisers of several kinds.

Every strategy makes small frozen objects that print, so that a failing example can be read and typed in again. Tensors
are made from them, by seed. Use them beside your own in tests of what no contract promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import field, frozen
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from cachepolicies.contracts.substitute import Refresh
from cachepolicies.testing.denoisers import SHAPE, BlockNetwork, Form, LinearDenoiser, mixture, shaped

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The dtypes that a latent may have, the usual one first."""

FORMS: Sequence[Form] = ("tensor", "tuple", "object")
"""What a denoiser may return."""

_GAPS = (1.0, 0.5, 2.0, 0.1)


@frozen
class RunPlan:
    """The calls of one run, by noise level.

    Attributes:
        timesteps: t of every step, in order of visit, falling.
        declared: whether the run is declared beforehand.
        second_calls: whether every step but the last has a second call, where it ends, as with Heun's method.
        back: ``(after, to)``: behind step ``after`` the sampler jumps back to step ``to``, once; ``None`` for no jump.
    """

    timesteps: tuple[float, ...]
    declared: bool = True
    second_calls: bool = False
    back: tuple[int, int] | None = None

    @property
    def calls(self) -> tuple[float, ...]:
        """The t of every call, in order."""
        order = list(range(len(self.timesteps)))
        if self.back is not None:
            after, to = self.back
            order = [*range(after + 1), *range(to, len(self.timesteps))]
        found = []
        for step in order:
            found.append(self.timesteps[step])
            if self.second_calls and step + 1 < len(self.timesteps):
                found.append(self.timesteps[step + 1])
        return tuple(found)


@st.composite
def runs(
    draw: st.DrawFn,
    *,
    timesteps: Sequence[float] | None = None,
    start: float = 1000.0,
    min_steps: int = 1,
    max_steps: int = 8,
    declared: bool | None = None,
    second_calls: bool | None = None,
    jumps: bool | None = None,
) -> RunPlan:
    """Draw the calls of a run.

    Args:
        draw: given by hypothesis.
        timesteps: the steps, where they are not to be drawn.
        start: where a drawn run begins; it ends above 0.
        min_steps: fewest steps.
        max_steps: most steps.
        declared: whether the run is; drawn if ``None``.
        second_calls: whether steps have a second call; drawn if ``None``.
        jumps: whether the run jumps back once; drawn if ``None``.
    """
    levels = tuple(timesteps or ())
    if not levels:
        steps = draw(st.integers(min_steps, max_steps))
        even = draw(st.booleans())
        gaps = [1.0 if even else draw(st.sampled_from(_GAPS)) for _ in range(steps)]
        total = math.fsum(gaps)
        levels = tuple(start * (1 - math.fsum(gaps[:k]) / total) for k in range(steps))
    told = draw(st.booleans()) if declared is None else declared
    twice = draw(st.booleans()) if second_calls is None else second_calls
    back = None
    if len(levels) > 1 and (draw(st.booleans()) if jumps is None else jumps):
        after = draw(st.integers(1, len(levels) - 1))
        back = after, draw(st.integers(0, after - 1))
    return RunPlan(levels, told, twice, back)


@frozen
class Batch:
    """Latents of a run, by seed. A sample's latents depend on the seed and its place, never on how many there are.

    Attributes:
        samples: how many.
        copies: how often each stands in the batch: 2 for ``cat([x, x])``.
        seed: of the latents.
        pace: how far they move from call to call, as a part of their size.
        dtype: of the latents.
        shape: of one sample.
    """

    samples: int = 1
    copies: int = 1
    seed: int = 0
    pace: float = 0.1
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = SHAPE

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self.samples * self.copies

    def latents(self, call: int, only: Sequence[int] | None = None) -> Tensor:
        """Return ``(B, ...)`` the latents of a call.

        Args:
            call: its number in the run.
            only: these samples, all with ``None``.
        """
        made = []
        for sample in range(self.samples) if only is None else only:
            generator = torch.Generator().manual_seed(1000 * self.seed + sample)
            start, moves = torch.randn(2, 1, *self.shape, generator=generator, dtype=torch.float64)
            made.append(start + call * self.pace * moves)
        return torch.cat(made * self.copies).to(self.dtype)


@st.composite
def batches(
    draw: st.DrawFn,
    *,
    min_samples: int = 1,
    max_samples: int = 3,
    doubled: bool | None = False,
    dtypes: Sequence[torch.dtype] = DTYPES[:1],
    shape: tuple[int, ...] = SHAPE,
) -> Batch:
    """Draw a batch.

    Args:
        draw: given by hypothesis.
        min_samples: fewest samples.
        max_samples: most samples.
        doubled: whether it is doubled for guidance; drawn if ``None``.
        dtypes: to choose from.
        shape: of one sample.
    """
    twice = draw(st.booleans()) if doubled is None else doubled
    return Batch(
        draw(st.integers(min_samples, max_samples)),
        2 if twice else 1,
        draw(st.integers(0, 1000)),
        draw(st.sampled_from((0.1, 0.0, 0.01, 1.0))),
        draw(st.sampled_from(dtypes)),
        shape,
    )


def doubled_batches(**options: Any) -> SearchStrategy[Batch]:
    """Draw a batch that is doubled for guidance; see `batches`."""
    return batches(doubled=True, **options)


@st.composite
def branches(draw: st.DrawFn, *, steps: int, max_branches: int = 3) -> tuple[tuple[str, ...], ...]:
    """Draw the branches that every step calls, in order; a step may leave some out, but never all.

    Args:
        draw: given by hypothesis.
        steps: how many steps there are.
        max_branches: most branches.
    """
    names = ("cond", "uncond", "third")[: draw(st.integers(1, max_branches))]
    found = []
    for _ in range(steps):
        order = draw(st.permutations(names))
        found.append(tuple(order[: draw(st.integers(1, len(names)))]))
    return tuple(found)


@frozen
class History:
    """What is remembered of every row of a batch when a stand-in is wanted.

    Attributes:
        now: noise level of the skipped evaluation.
        levels: for every row the noise levels of its refreshes, newest first; empty where it holds nothing.
        shape: of one row.
        dtype: of the outputs.
        seed: of the outputs.
        constant: whether a row's outputs are all the same.
    """

    now: float
    levels: tuple[tuple[float, ...], ...]
    shape: tuple[int, ...] = (2, 3)
    dtype: torch.dtype = torch.float32
    seed: int = 0
    constant: bool = False

    def refreshes(self, only: Sequence[int] | None = None) -> list[Refresh]:
        """Return the refreshes, newest first, of these rows or of all; empty rows hold values that are not finite."""
        rows = list(range(len(self.levels)) if only is None else only)
        found = []
        for place in range(max(len(self.levels[row]) for row in rows)):
            held = [place < len(self.levels[row]) for row in rows]
            outputs = [self._output(row, place) if ok else self._nothing() for row, ok in zip(rows, held, strict=True)]
            levels = [self.levels[row][place] if ok else math.nan for row, ok in zip(rows, held, strict=True)]
            points = [100 - place if ok else -1 for ok in held]
            entered = [
                self._output(row, place, 7) if ok else self._nothing() for row, ok in zip(rows, held, strict=True)
            ]
            found.append(Refresh(torch.stack(outputs), levels, held, points, torch.stack(entered)))
        return found

    def latents(self, only: Sequence[int] | None = None, salt: int = 3) -> Tensor:
        """Return ``(B, ...)`` a latent for the skipped evaluation."""
        rows = range(len(self.levels)) if only is None else only
        return torch.stack([self._output(row, 0, salt) for row in rows])

    def _output(self, row: int, place: int, salt: int = 0) -> Tensor:
        number = 0 if self.constant and not salt else place
        generator = torch.Generator().manual_seed(10_000 * self.seed + 100 * row + 10 * number + salt)
        return torch.randn(*self.shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def _nothing(self) -> Tensor:
        return torch.full(self.shape, math.nan, dtype=self.dtype)


@st.composite
def histories(
    draw: st.DrawFn,
    *,
    longest: int,
    start: float = 1000.0,
    max_rows: int = 3,
    dtypes: Sequence[torch.dtype] = DTYPES[:1],
    equal: bool = False,
    constant: bool = False,
) -> History:
    """Draw what is remembered of every row of a batch; the first row holds something.

    Args:
        draw: given by hypothesis.
        longest: most refreshes of a row.
        start: the highest noise level.
        max_rows: most rows.
        dtypes: to choose from.
        equal: whether all rows were refreshed at the same steps.
        constant: whether a row's outputs are all the same.
    """
    rows = draw(st.integers(1, max_rows))
    now = start * draw(st.sampled_from((0.3, 0.1, 0.002)))
    widest = (0.95 * start - now) / (longest + 1)
    levels: list[tuple[float, ...]] = []
    for row in range(rows):
        if equal and row:
            levels.append(levels[0])
            continue
        count = draw(st.integers(0 if row else 1, longest))
        level, found = now, []
        for _ in range(count):
            level += widest * draw(st.sampled_from((1.0, 0.5, 0.2)))
            found.append(level)
        levels.append(tuple(found))
    shape = draw(st.sampled_from(((2, 3), (4,))))
    return History(now, tuple(levels), shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 100)), constant)


@frozen
class Denoiser:
    """A small denoiser, as text: what it computes, what it returns, and in which dtype.

    Attributes:
        kind: ``"mixture"``, ``"linear"`` or ``"blocks"``.
        form: what it returns: a tensor, a tuple with a tensor first, or an object with a tensor ``.sample``.
        dtype: of its latent and its output.
    """

    kind: str = "mixture"
    form: Form = "tensor"
    dtype: torch.dtype = torch.float32
    _shape: tuple[int, ...] = field(default=SHAPE, repr=False)

    def build(self) -> Callable[..., Any]:
        """Return the denoiser ``f(x, t)``."""
        if self.kind == "blocks":
            return BlockNetwork(form=self.form).to(self.dtype)
        return shaped(mixture() if self.kind == "mixture" else LinearDenoiser(), self.form)


@st.composite
def denoisers(
    draw: st.DrawFn,
    *,
    kinds: Sequence[str] = ("mixture", "linear", "blocks"),
    forms: Sequence[Form] = FORMS,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Denoiser:
    """Draw a denoiser.

    Args:
        draw: given by hypothesis.
        kinds: to choose from.
        forms: to choose from.
        dtypes: to choose from.
    """
    return Denoiser(draw(st.sampled_from(kinds)), draw(st.sampled_from(forms)), draw(st.sampled_from(dtypes)))
