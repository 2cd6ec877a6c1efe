"""The planning problem as plain data: which errors reuses make, what they weigh, and what a plan must keep to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import is_integer, plain, refuse
from cachepolicies.planning.error_table import Floats, existing, longest_of, table_shape


def _weight_array(values: Any) -> Floats:
    return _read_only(_array("weights", values))


def _error_table(values: Any) -> Floats:
    array = _array("errors", values)
    if array.ndim >= 2:
        array[~existing(array.shape)] = np.inf  # whatever stood there, a path through it cannot be
    return _read_only(array)


def _sum_table(values: Any) -> Floats | None:
    if values is None:
        return None
    array = _array("sums", values)
    if array.ndim >= 2:
        array[~existing(array.shape)] = np.inf
    return _read_only(array)


def _array(what: str, values: Any) -> Floats:
    try:
        return np.array(values, dtype=np.float64)  # a copy: a problem cannot be changed from outside
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{what} is not a rectangular array of numbers ({error})") from error


def _read_only(array: Floats) -> Floats:
    array.flags.writeable = False
    return array


def _step_tuple(values: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(plain(value) for value in values)
    except TypeError as error:
        raise SettingsError(f"always is {values!r}, expected steps, such as (0, -1)") from error


@frozen(eq=False)
class PlanningProblem:
    """Choose refreshes R so that the weighted errors w_k e_k of the other steps are small.

    A substitute of order p looks at the last p + 1 refreshes, so the error of a reuse depends on them:
    ``errors[r, l - 1, g_1, ..., g_p]`` is the RMS error at step r + l, where r is the newest refresh, ``r - g_1`` the
    one before, ``r - g_1 - g_2`` the one before that. A gap of 0 (and only zeros after it) says that there is no such
    refresh: r, or the last one that is there, is step 0, and the substitute falls back to a lower order. Gaps are at
    most n + 1 and l at most n for n reuses in a row. Entries that no run can reach are not looked at; they become inf.
    `cachepolicies.planning.table_from_dense` makes the table from errors indexed by the steps themselves.

    Attributes:
        weights: ``(N,)`` float64, finite, >= 0: what an error at a step weighs in the objective.
        errors: ``(N, n) + (n + 2,) * p`` float64, >= 0, with ``n = min(max_reuse, N - 1)``.
        max_reuse: most reuses in a row, None without a limit.
        always: steps that are refreshed whatever the budget, negative ones from the end; step 0 always is.
        sums: laid out as ``errors``, or None: the RMS of the sum of the weighted errors, as vectors, of the first l
            reuses after r. Objectives that are ``signed`` need it; see `cachepolicies.planning.signed_sums`.

    Raises:
        SettingsError: a value is not finite or negative, a shape does not fit, or a step is out of range.
    """

    weights: Floats = field(converter=_weight_array, repr=False)
    errors: Floats = field(converter=_error_table, repr=False)
    max_reuse: int | None = field(default=None, converter=plain)
    always: tuple[int, ...] = field(default=(), converter=_step_tuple)
    sums: Floats | None = field(default=None, converter=_sum_table, repr=False)

    @max_reuse.validator
    def _check_max_reuse(self, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (not is_integer(value) or value < 0):
            refuse(self, attribute, value, "an integer >= 0, or None")

    def __attrs_post_init__(self) -> None:
        steps = self.num_steps
        if self.weights.ndim != 1 or not steps:
            raise SettingsError(f"weights has shape {self.weights.shape}, expected (N,), one for every step")
        bad = ~(np.isfinite(self.weights) & (self.weights >= 0))
        if bad.any():
            k = int(np.argmax(bad))
            raise SettingsError(f"weights[{k}] is {self.weights[k]}, expected a finite number >= 0")
        if self.errors.ndim < 2 or self.errors.shape != (shape := table_shape(steps, self.order, self.max_reuse)):
            wanted = "(N, n, ...)" if self.errors.ndim < 2 else str(shape)
            raise SettingsError(
                f"errors has shape {self.errors.shape}, expected {wanted} for {steps} steps and max_reuse "
                f"{self.max_reuse}; see table_from_dense"
            )
        there = existing(self.errors.shape)
        _check_entries("errors", "error", self.errors, there)
        if self.sums is not None:
            if self.sums.shape != self.errors.shape:
                raise SettingsError(f"sums has shape {self.sums.shape}, expected that of errors, {self.errors.shape}")
            _check_entries("sums", "sum of the errors", self.sums, there)
        with np.errstate(over="ignore"):
            largest = self.errors[there].max(initial=0.0) * self.weights.max() * steps
        if not np.isfinite(largest):
            raise SettingsError(
                f"the weights, up to {self.weights.max():g}, times the errors, up to {self.errors[there].max():g}, "
                "exceed the range of floating-point numbers; scale one of them down"
            )
        for step in self.always:
            if not is_integer(step) or not -steps <= step < steps:
                raise SettingsError(
                    f"always has {step!r}, expected steps from 0 to {steps - 1}, or from -1 back to {-steps}"
                )

    @property
    def num_steps(self) -> int:
        """N, the number of steps."""
        return len(self.weights)

    @property
    def order(self) -> int:
        """p, how many refreshes before the newest one the errors depend on."""
        return self.errors.ndim - 2

    @property
    def longest(self) -> int:
        """n, the most reuses in a row that can happen."""
        return longest_of(self.num_steps, self.max_reuse)

    @property
    def fixed(self) -> tuple[int, ...]:
        """The steps that every plan refreshes: 0 and the ones of ``always``, counted from 0, increasing."""
        return tuple(sorted({0, *(int(step) % self.num_steps for step in self.always)}))

    @property
    def fewest(self) -> int:
        """The smallest number of refreshes that ``max_reuse`` and ``always`` allow together."""
        ends = (*self.fixed, self.num_steps)
        return sum(-(-(after - before) // (self.longest + 1)) for before, after in pairwise(ends))

    def check_budget(self, budget: Any) -> int:
        """Return the budget if some plan keeps to it.

        Args:
            budget: most refreshes, an integer from 1 to N.

        Raises:
            SettingsError: it is out of range, or clashes with ``max_reuse`` or ``always``; names the two.
        """
        steps, budget = self.num_steps, plain(budget)
        if not is_integer(budget):
            raise SettingsError(f"budget is {budget!r} ({type(budget).__name__}), expected a number of evaluations")
        if not 1 <= budget <= steps:
            raise SettingsError(f"budget is {budget}, expected from 1 to the number of steps, {steps}")
        by_reuse = -(-steps // (self.longest + 1))
        if budget < by_reuse:
            raise SettingsError(
                f"budget {budget} and max_reuse {self.max_reuse} on {steps} steps clash: at least {by_reuse} "
                f"refreshes; give a budget of {by_reuse} or more, or a larger max_reuse"
            )
        if budget < len(self.fixed):
            implied = 0 not in self.always and -steps not in self.always
            count = len(self.fixed) - implied
            raise SettingsError(
                f"budget {budget} and {count} always steps {self.always} clash: "
                f"{'with step 0, which always is one, ' if implied else ''}at least {len(self.fixed)} refreshes; "
                f"give a budget of {len(self.fixed)} or more, or fewer always steps"
            )
        if budget < self.fewest:
            raise SettingsError(
                f"budget {budget} with max_reuse {self.max_reuse} and always {self.always} on {steps} steps: the "
                f"always steps and the limit on reuses clash, together they take at least {self.fewest} refreshes; "
                f"give a budget of {self.fewest} or more, or loosen one of them"
            )
        return int(budget)

    def errors_of(self, refreshes: Sequence[int]) -> Floats:
        """Return the error at every step of a run with these refreshes, ``(N,)`` float64, 0 where it is refreshed.

        Raises:
            SettingsError: they are not increasing steps with 0 first, or there are more reuses in a row than
                ``max_reuse``.
        """
        steps = tuple(int(step) for step in refreshes)
        ends = (*steps, self.num_steps)
        if not steps or steps[0] != 0 or any(after <= before for before, after in pairwise(ends)):
            raise SettingsError(
                f"refreshes are {steps}, expected increasing steps from 0 to {self.num_steps - 1}, 0 first"
            )
        found = np.zeros(self.num_steps)
        gaps: tuple[int, ...] = (0,) * self.order
        for before, after in pairwise(ends):
            reuses = after - before - 1
            if reuses > self.longest:
                raise SettingsError(
                    f"refreshes {steps} have {reuses} reuses in a row after step {before}, more than max_reuse "
                    f"{self.max_reuse}"
                )
            entry: tuple[Any, ...] = (before, slice(0, reuses), *gaps)
            found[before + 1 : after] = self.errors[entry]
            gaps = (after - before, *gaps)[: self.order]
        return found


@frozen
class Solution:
    """The best refreshes that a budget allows.

    Attributes:
        budget: most refreshes.
        predicted: the objective's value; for one that minimises the largest error first, that largest error.
        refreshes: the refreshed steps, increasing, 0 first; at most ``budget``.
    """

    budget: int
    predicted: float
    refreshes: tuple[int, ...]


def _check_entries(what: str, meaning: str, table: Floats, there: Any) -> None:
    wrong = there & ~(np.isfinite(table) & (table >= 0))
    if wrong.any():
        entry = tuple(int(index) for index in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise SettingsError(
            f"{what}{list(entry)}, the {meaning} at step {entry[0] + entry[1] + 1} after a refresh at {entry[0]}, is "
            f"{table[entry]}, expected a finite number >= 0"
        )
