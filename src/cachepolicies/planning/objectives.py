"""What a plan minimises: how the errors of reuses are combined along a run, and which of two runs is the better."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
from attrs import field, frozen

from cachepolicies.base.errors import SettingsError, nearest_match_hint
from cachepolicies.base.settings import at_least_one, plain
from cachepolicies.contracts.declared import Contract
from cachepolicies.planning.error_table import Floats

_USUAL_POWER = 2.0


class Objective(Contract, declares=True):
    """How the weighted errors of a run are made into a value, so that a dynamic programme can minimise it.

    A run is a path of *edges* from one refresh to the next, the last one to the end. An edge with l reuses has their l
    weighted errors. A path's value is a vector of K numbers; of two values the better is the smaller in the first
    number in which they differ. All methods work on the last axis of arrays and broadcast over the others.

    For the result to be the optimum, ``join`` must keep the order of values: from a <= b follows join(a, e) <=
    join(b, e) for every edge e. Sums do, maxima do, and so do the edges' costs sorted from the largest down. A pair
    (maximum, sum) does not; that is what ``bottleneck`` is for.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, recorded in the plan; a class attribute."""

    @property
    def bottleneck(self) -> bool:
        """Whether the largest weighted error of a step is minimised first, and the value only among those plans."""
        return False

    @property
    def signed(self) -> bool:
        """Whether an edge is judged by the vector sum of its errors, not by their sizes; by their sizes by default."""
        return False

    @abstractmethod
    def start(self, refreshes: int) -> Floats:
        """Return the value ``(K,)`` of a path without edges, where paths have at most ``refreshes`` edges."""

    @abstractmethod
    def edges(self, errors: Floats) -> Floats:
        """Return what ``join`` needs of edges.

        Args:
            errors: ``(..., n)`` weighted errors of the first, second, ... reuse after a refresh; where the objective is
                ``signed``, the RMS of the sum of the first 1, 2, ... n weighted errors instead. inf from where on there
                are no more steps.

        Returns:
            ``(..., n + 1, E)`` of the edges with 0, 1, ... n reuses.
        """

    @abstractmethod
    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Return the values ``(..., K)`` of paths ``(..., K)`` with one more edge ``(..., E)``.

        A path that cannot be has the value inf in every entry, and so must what it is joined to; an edge that must not
        be used has inf, and what it is joined to must have inf in its first entry.
        """

    @abstractmethod
    def cost(self, value: Floats) -> float:
        """Return the value ``(K,)`` as the one number that is reported and that a target is compared with.

        It must not fall when the value gets worse.
        """


@frozen
class Sum(Objective):
    """The sum of the weighted errors of all reused steps.

    Attributes:
        bottleneck: minimise their maximum first (``"lexicographic"``).
    """

    bottleneck: bool = False
    name: ClassVar[str] = "sum"

    def start(self, refreshes: int) -> Floats:
        """Return 0, ``(1,)``."""
        return np.zeros(1)

    def edges(self, errors: Floats) -> Floats:
        """Return the sums of the first 0, 1, ... n errors, ``(..., n + 1, 1)``."""
        return np.cumsum(_with_none(errors), axis=-1)[..., None]

    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Return the sum."""
        return paths + edges

    def cost(self, value: Floats) -> float:
        """Return the sum."""
        return float(value[0])


@frozen
class Lexicographic(Sum):
    """The largest weighted error first, and the sum among all plans that have the smallest such."""

    bottleneck: bool = True
    name: ClassVar[str] = "lexicographic"


@frozen
class Largest(Objective):
    """The largest weighted error of a reused step."""

    name: ClassVar[str] = "max"

    def start(self, refreshes: int) -> Floats:
        """Return 0, ``(1,)``."""
        return np.zeros(1)

    def edges(self, errors: Floats) -> Floats:
        """Return the largest of the first 0, 1, ... n errors, ``(..., n + 1, 1)``."""
        return np.maximum.accumulate(_with_none(errors), axis=-1)[..., None]

    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Return the larger one."""
        return np.maximum(paths, edges)

    def cost(self, value: Floats) -> float:
        """Return the maximum."""
        return float(value[0])


@frozen
class Signed(Objective):
    """The errors of one stretch as vectors, the stretches as powers: ``(sum_edges || sum_k w_k e_k || ** p) ** (1/p)``.

    Between two refreshes a stand-in errs on one side, so that the errors of a stretch add up or cancel as vectors do.
    The errors of different stretches have little to do with each other: with the power 2 they add as if at right
    angles, and the larger the power, the more the largest of them counts.

    Attributes:
        power: p, >= 1.
    """

    power: float = field(default=_USUAL_POWER, converter=plain, validator=at_least_one)

    @property
    def signed(self) -> bool:
        """Yes."""
        return True

    @property
    def name(self) -> str:
        """``"signed"``, with its power where that is not the usual one."""
        return "signed" if self.power == _USUAL_POWER else f"signed, power {self.power:g}"

    def start(self, refreshes: int) -> Floats:
        """Return 0, ``(1,)``."""
        return np.zeros(1)

    def edges(self, errors: Floats) -> Floats:
        """Return the powers of the sums of the first 0, 1, ... n errors, ``(..., n + 1, 1)``."""
        return _with_none(errors)[..., None] ** self.power

    def join(self, paths: Floats, edges: Floats) -> Floats:
        """Return the sum."""
        return paths + edges

    def cost(self, value: Floats) -> float:
        """Return the root of the sum: RMS change of the sample, where the weights say that."""
        return math.pow(float(value[0]), 1.0 / self.power)


def _with_none(errors: Floats) -> Floats:
    return np.concatenate([np.zeros((*errors.shape[:-1], 1)), errors], axis=-1)


OBJECTIVES: dict[str, Objective] = {
    "signed": Signed(),
    "sum": Sum(),
    "max": Largest(),
    "lexicographic": Lexicographic(),
}
"""The built-in objectives by name."""


def as_objective(objective: str | Objective) -> Objective:
    """Return the objective that a name or an object stands for.

    Raises:
        SettingsError: the name is unknown, or the object is no `Objective`.
    """
    if isinstance(objective, str):
        if objective not in OBJECTIVES:
            raise SettingsError(f"unknown objective {objective!r}: {nearest_match_hint(objective, OBJECTIVES)}")
        return OBJECTIVES[objective]
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise SettingsError(
            f"objective is {objective!r}; give {', '.join(OBJECTIVES)}, or an object that derives from "
            "cachepolicies.planning.Objective"
        )
    return objective
