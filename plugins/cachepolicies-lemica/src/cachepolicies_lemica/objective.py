"""The objective: what each stretch of reuses costs, the costliest first."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from cachepolicies.planning import Objective

Floats: TypeAlias = NDArray[np.float64]


@frozen
class LexicographicMinimax(Objective):
    """The smallest worst stretch, among those plans the smallest second worst, and so on (arXiv 2511.00090).

    A stretch is an edge of the paper's graph: the reuses from one evaluation to the next. Its cost is the sum of their
    weighted errors. A plan's value is the costs of its stretches sorted from the largest down, zeros at the end, and of
    two values the better is the smaller in the first number in which they differ.

    Adding one cost to two values keeps their order, whatever it is. So the best plan is made of best plans, and the
    search in `cachepolicies.planning.trade_off` finds it exactly, for every budget at once. The value has as many
    numbers as a plan may have evaluations: time and memory grow with that, and a limit on reuses in a row saves most.
    """

    name: ClassVar[str] = "lemica"

    def start(self, refreshes: int) -> Floats:
        """Return ``refreshes`` zeros."""
        return np.zeros(refreshes)

    def edges(self, errors: Floats) -> Floats:
        """Return the costs ``(..., n + 1, 1)`` of stretches with 0, 1, ... n reuses.

        Args:
            errors: ``(..., n)`` weighted errors of the first, second, ... reuse.
        """
        none = np.zeros((*errors.shape[:-1], 1))
        return np.cumsum(np.concatenate([none, errors], axis=-1), axis=-1)[..., None]

    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Return the values ``(..., K)`` of paths ``(..., K)`` with one more cost ``(..., 1)`` in its place.

        An entry stays where it is at least the cost; below, it is the smaller of its left neighbour and the cost. What
        drops out at the end is a zero.
        """
        first = np.full((*paths.shape[:-1], 1), np.inf)
        left = np.concatenate([first, paths[..., :-1]], axis=-1)
        found: Floats = np.maximum(paths, np.minimum(left, edges))
        return found

    def cost(self, value: Floats) -> float:
        """Return the cost of the worst stretch."""
        return float(value[0])
