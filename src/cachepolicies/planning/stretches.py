"""The errors of the reuses between two refreshes, added as vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.substitute import Extrapolation
from cachepolicies.planning.error_table import Floats, Integers, existing, longest_of, refreshes_of, table_shape
from cachepolicies.planning.errors import coefficients_at, require
from cachepolicies.profiles.schema import Profile

ACTED_UPON = 0.5
"""Part of a stretch's own error that stays although the next evaluation corrects it.

That evaluation was made on a latent which had the error. Chosen by samples of the four reference models, among 0.2 and
0.5; their twins had no part in it.
"""


def signed_sums(
    profile: Profile,
    substitute: Extrapolation,
    weights: Floats,
    max_reuse: int | None = None,
    order: int | None = None,
) -> Floats:
    """Return the RMS of ``sum_k w_k (y_k - stand-in_k)`` over the reuses since a refresh, the mean over the samples.

    A stand-in is a combination of the outputs at the last refreshes whose coefficients sum to 1. So the sum is one of
    differences ``u_i = y_i - y_r`` from the output at the newest refresh r, and its square follows from their inner
    products, which the table ``change`` of the distances between outputs holds:
    ``2 <u_i, u_j> = |u_i|^2 + |u_j|^2 - |y_i - y_j|^2``. Nothing is approximated, whatever the substitute's order.

    For a substitute that corrects, the stand-ins are what they amount to after the next evaluation, except where none
    follows; beside that, a part (`ACTED_UPON`) of the error before the correction is added in squares.

    Args:
        profile: has the table ``change``.
        substitute: its coefficients are used, of a lower order where the history is short.
        weights: ``(N,)`` what an error at a step weighs.
        max_reuse: most reuses in a row, None without a limit.
        order: how many older refreshes the table tells apart; the substitute's own if ``None``.

    Returns:
        A table laid out as that of `cachepolicies.planning.PlanningProblem`, float64: entry ``[r, l - 1, ...]`` for the
        first l reuses after r, with a refresh behind them.

    Raises:
        NeedsError: the profile has no table ``change``.
        PolicyError: the substitute's coefficients are not finite or do not sum to 1.
        SettingsError: the table would be too large; says which ``max_reuse`` is possible.
    """
    require(profile, ("change",), "signed sums of errors")
    change = np.moveaxis(np.asarray(profile.tables["change"], dtype=np.float64), 2, 0)
    steps, depth = len(profile.timesteps), substitute.order if order is None else order
    if weights.shape != (steps,):
        raise SettingsError(f"weights has shape {weights.shape}, expected ({steps},), one for every step")
    table = np.full(table_shape(steps, depth, max_reuse), np.inf)
    there = existing(table.shape)
    for r in range(steps - 1):
        reused = np.arange(r + 1, min(r + longest_of(steps, max_reuse), steps - 1) + 1)
        if not len(reused):
            continue
        stretch = _Stretch.of(change, r, reused, weights, substitute, profile.timesteps)
        for history in _histories(there[r, 0], r):
            sums = np.sqrt(np.maximum(stretch.squares(history), 0.0)).mean(axis=0)
            entry: tuple[Any, ...] = (slice(0, len(reused)), *history.gaps)
            table[r][entry] = sums if history.gaps else sums[:, 0]
    table[~there] = np.inf
    return table


@frozen(eq=False)
class _Histories:
    """All histories of one length before a refresh.

    Attributes:
        gaps: index arrays ``(H,)`` into the gap axes of the table.
        refreshes: the refresh and the older ones, newest first, ``(H,)`` each.
    """

    gaps: tuple[Integers, ...]
    refreshes: tuple[Integers, ...]


def _histories(there: Any, r: int) -> Iterator[_Histories]:
    """Split the histories that a refresh can have by how many older refreshes they hold."""
    if there.ndim == 0:
        yield _Histories((), (np.array([r]),))
        return
    gaps = np.nonzero(there)
    depths = np.count_nonzero(np.stack(gaps), axis=0)
    for depth in sorted({*depths.tolist()}):
        chosen = tuple(gap[depths == depth] for gap in gaps)
        newest = np.full(len(chosen[0]), r)
        yield _Histories(chosen, refreshes_of((newest, newest, *chosen), depth))


@frozen(eq=False)
class _Stretch:
    """What follows a refresh r, as far as it does not depend on the refreshes before.

    Attributes:
        reused: ``(n,)`` the steps after r.
        weights: ``(n,)`` of these steps.
        inner: ``(S, N, N)`` inner products of the outputs' differences from that at r.
        alone: ``(S, n)`` the square of ``sum_k w_k u_k`` over the first 1, 2, ... of the steps.
        along: ``(S, n, N)`` the inner product of that sum with the difference at every step.
    """

    reused: Integers
    weights: Floats
    inner: Floats
    alone: Floats
    along: Floats
    substitute: Extrapolation
    timesteps: tuple[float, ...]

    @classmethod
    def of(
        cls,
        change: Floats,
        r: int,
        reused: Integers,
        weights: Floats,
        substitute: Extrapolation,
        timesteps: Sequence[float],
    ) -> _Stretch:
        """Look at the steps after r."""
        squares = change**2
        from_r = squares[:, r]
        inner = 0.5 * (from_r[:, :, None] + from_r[:, None, :] - squares)
        own = weights[reused]
        along = np.cumsum(own[:, None] * inner[:, reused], axis=1)
        running = np.cumsum(along[:, :, reused] * own, axis=2)
        alone = np.diagonal(running, axis1=1, axis2=2)
        return cls(reused, own, inner, alone, along, substitute, tuple(timesteps))

    def squares(self, history: _Histories) -> Floats:
        """Return the squares of the signed sums for all histories, ``(S, n, H)``."""
        refreshes = history.refreshes
        count, histories = len(self.reused), len(refreshes[0])
        at = np.repeat(self.reused, histories)
        seen = tuple(np.tile(step, count) for step in refreshes)
        # 1 for the reused step, minus the coefficients: r itself does not count, its difference from itself is 0
        found = -coefficients_at(self.substitute, self.timesteps, at, seen).reshape(count, histories, -1)[:, :, 2:]
        shares = np.cumsum(self.weights[:, None, None] * found, axis=0)
        own = self._square(np.arange(count), refreshes[1:], list(np.moveaxis(shares, 2, 0)))
        if not self.substitute.corrects:
            return own
        followed = int(np.count_nonzero(self.reused + 1 < len(self.timesteps)))
        if followed:
            corrected = np.concatenate([self._corrected(last, history) for last in range(followed)], axis=1)
            own[:, :followed] = corrected + ACTED_UPON**2 * own[:, :followed]
        return own

    def _corrected(self, last: int, history: _Histories) -> Floats:
        """Return the squares for the first ``last + 1`` reuses after a refresh behind them corrected, ``(S, 1, H)``."""
        refreshes, histories = history.refreshes, len(history.refreshes[0])
        steps = self.reused[: last + 1]
        following = int(steps[-1]) + 1
        levels = np.asarray(self.timesteps, dtype=np.float64)
        at = np.repeat(steps, histories)
        seen = np.stack([np.tile(step, len(steps)) for step in refreshes], axis=1)
        after = np.full(len(at), levels[following])
        found = self.substitute.many_corrected_coefficients(levels[at], levels[seen], after)
        found = found.reshape(len(steps), histories, -1)
        shares = np.einsum("k,khj->jh", self.weights[: last + 1], found)
        others = (np.full(histories, following), *refreshes[1:])
        return self._square(np.array([last]), others, [shares[0][None], *(share[None] for share in shares[2:])])

    def _square(self, lasts: Integers, others: Sequence[Integers], shares: Sequence[Floats]) -> Floats:
        """Return ``|sum_k w_k u_k - sum_j b_j u_j|^2``, ``(S, len(lasts), H)``.

        Args:
            lasts: up to which of the reused steps each sum goes.
            others: the steps j, ``(H,)`` each.
            shares: their b, ``(len(lasts), H)`` each.
        """
        histories = len(shares[0][0]) if shares else 1
        total = np.repeat(self.alone[:, lasts, None], histories, axis=2)
        for step, share in zip(others, shares, strict=True):
            total -= 2.0 * share * self.along[:, lasts[:, None], step]
            for other, second in zip(others, shares, strict=True):
                total += share * second * self.inner[:, step, other][:, None]
        found: Floats = total
        return found


def sums_along(errors: Floats, weights: Sequence[float]) -> Floats:
    """Return the running sums of the weighted errors of a table, for errors whose directions are not known.

    They are added as if all errors of a stretch pointed the same way.

    Args:
        errors: the table of `cachepolicies.planning.PlanningProblem`.
        weights: one a step.
    """
    weighed = np.full(errors.shape, np.inf)
    steps = errors.shape[0]
    for r in range(steps):
        reuses = min(errors.shape[1], steps - 1 - r)
        here = np.asarray(weights[r + 1 : r + 1 + reuses]).reshape(-1, *(1,) * (errors.ndim - 2))
        with np.errstate(invalid="ignore"):
            weighed[r, :reuses] = np.cumsum(errors[r, :reuses] * here, axis=0)
    weighed[np.isnan(weighed)] = np.inf  # no such history, at a step that weighs nothing
    return weighed
