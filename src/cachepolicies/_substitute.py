"""The contract of a substitute: *what* stands in for a skipped evaluation?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from attrs import define
from torch import Tensor


@define(eq=False)
class Refresh:
    """One remembered evaluation of every row of a batch; rows may have been computed at different steps.

    Attributes:
        output: ``(B, ...)`` what the denoiser returned.
        t: noise level at which each row was computed; ``nan`` where the row holds nothing.
        filled: whether the row holds a finite output.
        point: serial number of the decision at which each row was computed; -1 where it holds nothing.
    """

    output: Tensor
    t: list[float]
    filled: list[bool]
    point: list[int]


@runtime_checkable
class Substitute(Protocol):
    """Computes a stand-in for the denoiser's output from remembered ones. Frozen settings, no state of its own."""

    name: ClassVar[str]
    """Short name, shown in traces and errors."""

    @property
    def history(self) -> int:
        """How many refreshes the store has to keep, at least 1. Memory is that many outputs a branch."""
        ...

    def predict(self, t: float, history: Sequence[Refresh]) -> Tensor:
        """Return the stand-in at t for every row.

        Args:
            t: noise level of the skipped evaluation.
            history: up to ``self.history`` refreshes, newest first. The newest is filled in every row that will be
                used; what is returned for the other rows is ignored.

        Returns:
            ``(B, ...)`` of the dtype of the remembered outputs. A remembered tensor itself may be returned: the
            engine copies before it hands out.
        """
        ...
