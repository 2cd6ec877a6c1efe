"""How the rows of a batch map to the samples that decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor

_MOST_COPIES = 4
"""Guidance passes that a pipeline puts into one batch: unconditional, conditional, perturbed, and one more."""

_DOUBLED = 2


@frozen
class Layout:
    """Rows of a batch, grouped by who decides for them.

    Row r belongs to sample ``r % samples``: a batch doubled for guidance is ``cat([x, x])``. With ``per_sample=False``
    all rows belong to one decision. Where copies decide apart, each is a guidance branch, and decision d belongs to one
    of them.

    Attributes:
        rows: size B of the batch.
        copies: how often each sample stands in the batch (2 for a batch doubled for guidance).
        per_sample: whether every sample decides for itself.
        apart: whether the copies of a sample decide apart.
    """

    rows: int
    copies: int = 1
    per_sample: bool = True
    apart: bool = False
    decisions: int = field(init=False)
    _rows_of: tuple[tuple[int, ...], ...] = field(init=False, repr=False)

    @decisions.default
    def _count(self) -> int:
        copies = self.copies if self.apart else 1
        return copies * (self.rows // self.copies if self.per_sample else 1)

    @_rows_of.default
    def _group(self) -> tuple[tuple[int, ...], ...]:
        if self.apart and not self.per_sample:
            one = self.rows // self.copies
            return tuple(tuple(range(d * one, (d + 1) * one)) for d in range(self.copies))
        return tuple(tuple(range(d, self.rows, self.decisions)) for d in range(self.decisions))

    @property
    def copy_names(self) -> tuple[str, ...]:
        """The names of the copies as branches, in the order of the batch: ``"copy 1"``, ``"copy 2"``."""
        return tuple(f"copy {number}" for number in range(1, self.copies + 1))

    def branches_of(self, branch: str) -> tuple[str, ...]:
        """Return the branch of every decision in a call.

        Args:
            branch: of the call; where the copies decide apart, each has its own name.
        """
        if not self.apart:
            return (branch,) * self.decisions
        each = self.decisions // self.copies
        return tuple(name for name in self.copy_names for _ in range(each))

    def by_copy(self, values: Tensor) -> dict[str, Tensor]:
        """Return the values ``(B, ...)`` of every copy in all rows of their samples, ``(B, ...)``, by its name."""
        parts = values.chunk(self.copies)
        return {name: torch.cat([part] * self.copies) for name, part in zip(self.copy_names, parts, strict=True)}

    def rows_of(self, decision: int) -> tuple[int, ...]:
        """Return the rows that follow this decision."""
        return self._rows_of[decision]

    def pool_rms(self, rows: Sequence[float]) -> tuple[float, ...]:
        """Combine one RMS per row into one per decision, the RMS over all its elements."""
        if self.decisions == self.rows:
            return tuple(rows)
        return tuple(math.sqrt(sum(rows[r] ** 2 for r in group) / len(group)) for group in self._rows_of)

    def select(self, mask: Sequence[bool]) -> list[int]:
        """Return the rows, in order, of the decisions where ``mask`` is true."""
        if self.decisions == self.rows:
            return [r for r, chosen in enumerate(mask) if chosen]
        return sorted(r for d, chosen in enumerate(mask) if chosen for r in self._rows_of[d])


def equal_parts(x: Tensor) -> int:
    """Return into how many equal parts a latent ``(B, ...)`` splits: 2 for ``cat([x, x])``, 1 if the rows differ.

    The largest such number up to 4. Where all rows are equal (samples from one seed) any number would do, and a doubled
    batch is by far the most frequent: 2. Compares values, which waits for the device.
    """
    rows = x.shape[0]
    if rows % _DOUBLED == 0 and torch.equal(x.detach()[1:], x.detach()[:-1]):
        return _DOUBLED
    for parts in range(min(_MOST_COPIES, rows), 1, -1):
        if rows % parts == 0:
            first, *others = x.detach().chunk(parts)
            if all(torch.equal(first, other) for other in others):
                return parts
    return 1
