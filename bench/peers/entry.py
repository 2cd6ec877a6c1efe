"""One setting of one method on one case, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen
from cases import Case
from torch import Tensor


@frozen
class Run:
    """What one setting gave.

    Attributes:
        pictures: of all seeds.
        work: the part of the uncached FLOPs that was executed.
    """

    pictures: Tensor
    work: float


@frozen
class Entry:
    """One setting of one method, and how it is sampled.

    Attributes:
        method: its name in tables.
        setting: what it was swept over.
        sample: the run on a case, for some seeds.
    """

    method: str
    setting: str
    sample: Callable[[Case, Sequence[int]], Run]
