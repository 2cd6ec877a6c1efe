"""The contract of a substitute: *what* stands in for a skipped evaluation?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.errors import PolicyError
from cachepolicies.base.timesteps import slack_of
from cachepolicies.contracts.declared import Contract
from cachepolicies.contracts.step import direction_of

if TYPE_CHECKING:
    from cachepolicies.contracts.setup import Setup


FILLED_IN = {"cachepolicies": "filled in at set-up"}
"""Metadata of a substitute's fields that set-up fills in; a plan's spec of the substitute leaves them out."""


@define(eq=False)
class Refresh:
    """One remembered evaluation of every row of a batch; rows may have been computed at different steps.

    Attributes:
        output: ``(B, ...)`` what the denoiser returned, or what flowed on from the place.
        t: noise level at which each row was computed; ``nan`` where the row holds nothing.
        filled: whether the row holds a finite output.
        point: serial number of the decision at which each row was computed; -1 where it holds nothing.
        input: ``(B, ...)`` what had gone into the place; ``None`` unless the substitute asks for it.
        signals: ``(B, ...)`` values from inside the model at that time, by name, as far as the substitute asks for it.
        branches: ``(B, ...)`` what other branches had returned at that place and t by then, by branch; empty unless the
            substitute keeps it.
    """

    output: Tensor
    t: list[float]
    filled: list[bool]
    point: list[int]
    input: Tensor | None = None
    signals: Mapping[str, Tensor] = field(factory=dict)
    branches: Mapping[str, Tensor] = field(factory=dict)


@frozen(eq=False)
class Context:
    """The present, beside the history: what a stand-in may be computed from.

    Attributes:
        t: noise level of the skipped evaluation.
        x: ``(B, ...)`` the latent that the denoiser was called with; not to be changed.
        input: ``(B, ...)`` what goes into the place: the latent at the denoiser's output, the streams that enter the
            block stack, a module's first tensor; ``None`` unless the substitute asks for it.
        signals: ``(B, ...)`` values from inside the model, by name, as the substitute declares them.
        branches: ``(B, ...)`` what other branches returned at this place and t, by branch; empty unless the substitute
            asks for it. Only those that were called before are there. Where the copies of a doubled batch decide apart,
            each is a branch, and those are there that were evaluated in this call, each in all rows of its samples.
        branch: of the call.
        place: of the site; ``""`` where it has one place.
        index: step of the run, or ``None`` when the run was not declared.
        arguments: what else the denoiser was called with, for the whole batch: all but x and t, by name.
        timesteps: t of the first evaluation of every step, or ``None`` when the run was not declared.
        visited: noise levels at which something has flowed on from the place before, newest first; of several times at
            one level in a row, the last counts. Empty unless the substitute recalls.
        passed: ``(B, ...)`` what flowed on at the newest of them, evaluated or stood in, as many as the substitute
            recalls; not to be changed.
        entered: ``(B, ...)`` what had gone into the place before each of ``passed`` flowed on; empty unless the
            substitute wants the input too. Not to be changed.
    """

    t: float
    x: Tensor | None = field(default=None, repr=False)
    input: Tensor | None = field(default=None, repr=False)
    signals: Mapping[str, Tensor] = field(factory=dict, repr=False)
    branches: Mapping[str, Tensor] = field(factory=dict, repr=False)
    branch: str = "default"
    place: str = ""
    index: int | None = None
    arguments: Mapping[str, Any] = field(factory=dict, repr=False)
    timesteps: tuple[float, ...] | None = field(default=None, repr=False)
    visited: tuple[float, ...] = field(default=(), repr=False)
    passed: tuple[Tensor, ...] = field(default=(), repr=False)
    entered: tuple[Tensor, ...] = field(default=(), repr=False)

    def index_of(self, t: float) -> int | None:
        """Return the step of the run that a noise level lies in, a refresh's say; see `RunInfo.index`.

        ``None`` when the timesteps of the run are not known.
        """
        if self.timesteps is None:
            return None
        direction, slack = direction_of(self.timesteps), slack_of(self.timesteps)
        return max(0, sum(direction * level <= direction * t + slack for level in self.timesteps) - 1)


@frozen(eq=False)
class Prediction:
    """A stand-in together with the order that it has in every row.

    Attributes:
        output: ``(B, ...)`` the stand-in, as `Substitute.predict` returns it.
        order: for each row the order really used, lower than the substitute's own while the row's history is short.
    """

    output: Tensor
    order: tuple[int, ...]


class Substitute(Contract, declares=True):
    """Computes a stand-in for a skipped evaluation, from remembered ones and from the present.

    Frozen settings, no state of its own. Only ``history`` and ``predict`` have to be written.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in traces and errors; a class attribute."""

    @property
    @abstractmethod
    def history(self) -> int:
        """How many refreshes have to be remembered, at least 1. Memory is that many outputs a branch and place."""

    @property
    def guard(self) -> float | None:
        """How far the RMS of a row may leave the range seen so far, a factor >= 1; ``None`` for no such limit.

        The range is that of the row's evaluated outputs since the run began. Outside ``[lowest / guard, highest *
        guard]`` the engine holds the newest output instead, and the trace says so. A row that is not finite never
        passes, whatever the guard.
        """
        return None

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said in the trace of every run: whole sentences, each for one line; none by default."""
        return ()

    @property
    def signals(self) -> frozenset[str]:
        """Names of the signals that ``predict`` looks at; none by default."""
        return frozenset()

    @property
    def keeps_signals(self) -> frozenset[str]:
        """Names of those of its signals that are kept with each refresh, in ``refresh.signals``; none by default."""
        return frozenset()

    @property
    def wants_input(self) -> bool:
        """Whether ``predict`` looks at the place's input, now and at each refresh; twice the memory. Not by default."""
        return False

    @property
    def recalls(self) -> int:
        """How many of the last values that flowed on are kept for it, its own stand-ins among them; 0 by default.

        Memory is that many outputs a branch and place, beside the refreshes; twice that if it wants the input, which is
        kept with each.
        """
        return 0

    @property
    def wants_branches(self) -> bool:
        """Whether ``predict`` looks at what other branches returned at this t. Not by default."""
        return False

    @property
    def keeps_branches(self) -> bool:
        """Whether what other branches returned is kept with each refresh too, in ``refresh.branches``; not by default.

        Only for one that wants branches. Those that were called before at that t are kept; one more output each.
        """
        return False

    @property
    def adds_input(self) -> bool:
        """Whether it adds what enters the place now; refused where the site remembers residuals. Not by default."""
        return False

    @property
    def corrects(self) -> bool:
        """Whether it has a `correction` for evaluations; needs a declared run and the site ``output``. Not by default.

        One refresh of the ``history`` is then the evaluation that is corrected.
        """
        return False

    def resolve(self, setup: Setup) -> Substitute:
        """Return the substitute that works in this set-up; itself unless it says otherwise. Called once.

        Args:
            setup: profile, scheduler, model, adapter, and the site where there is a model; not the policy, which comes
                after.

        Raises:
            NeedsError: the settings ask for something that cannot be had in this set-up.
        """
        return self

    @abstractmethod
    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor | Prediction:
        """Return the stand-in for every row.

        Args:
            context: the present.
            history: up to ``self.history`` refreshes, newest first. The newest is filled in every row that will be
                used; what is returned for the other rows is ignored.

        Returns:
            ``(B, ...)`` of the dtype of the remembered outputs. A remembered tensor itself may be returned: the
            engine copies before it hands out. As a `Prediction`, with the order of every row, where there is one to
            record.
        """

    def correction(self, context: Context, history: Sequence[Refresh]) -> Tensor | None:
        """Return what is added to a new evaluation to make up for the errors of the stand-ins before it.

        Asked for at every evaluation if it ``corrects``, and left out in rows where the guard held an output back since
        the last refresh. What is remembered is the evaluation itself.

        Args:
            context: the present, of the new evaluation.
            history: up to ``self.history`` refreshes, newest first; the newest is the new evaluation in every row that
                was evaluated. What is returned for the other rows is ignored.

        Returns:
            ``(B, ...)`` floating point, 0 in rows without stand-ins; ``None``, as by default, where there is nothing to
            add in any row.
        """
        return None


class Extrapolation(Substitute, declares=True):
    """A substitute that is a linear combination of remembered outputs, with weights that depend on noise levels only.

    What derives from it can be planned for: the error of any such combination is known from the differences between the
    outputs of the calibration runs. ``history`` is one more than ``order``, and another one if it corrects.
    """

    @property
    @abstractmethod
    def order(self) -> int:
        """Order once the history is long enough."""

    @property
    def history(self) -> int:
        """One refresh more than the order, and the one that is corrected; as many outputs are kept for every branch."""
        return self.order + 1 + int(self.corrects)

    def time(self, t: float) -> float:
        """Return the point on the axis that the substitute extrapolates in, which belongs to the noise level t."""
        return t

    @abstractmethod
    def coefficients(self, t: float, refreshes: Sequence[float]) -> tuple[float, ...]:
        """Return the weights of the remembered outputs in the stand-in at t.

        Args:
            t: noise level of the skipped evaluation.
            refreshes: noise levels of the last refreshes, newest first, at least one. Those beyond ``order + 1`` are
                ignored.

        Returns:
            At most ``order + 1`` weights, newest first; missing ones are 0. They sum to 1: an output that does not
            change is reproduced.
        """

    def corrected_coefficients(self, t: float, refreshes: Sequence[float], following: float) -> tuple[float, ...]:
        """Return what a stand-in amounts to once the next evaluation has corrected it; where it is not, what it is.

        Args:
            t: noise level of the skipped evaluation.
            refreshes: noise levels of the refreshes before it, newest first.
            following: noise level of the next evaluation.

        Returns:
            The weight of the next evaluation's output, then those of `coefficients`; they sum to 1.
        """
        return (0.0, *self.coefficients(t, refreshes))

    def many_coefficients(self, t: NDArray[np.float64], refreshes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `coefficients` at many points; one by one unless it says otherwise.

        Args:
            t: ``(M,)`` noise levels of the skipped evaluations.
            refreshes: ``(M, n)`` noise levels of the last refreshes of each, newest first.

        Returns:
            ``(M, n)`` float64, 0 for refreshes that do not count.

        Raises:
            PolicyError: `coefficients` returned none, or more than there are refreshes.
        """
        found = np.zeros(refreshes.shape)
        for row, (level, seen) in enumerate(zip(t.tolist(), refreshes.tolist(), strict=True)):
            weights = self.coefficients(level, seen)
            if not 1 <= len(weights) <= len(seen):
                raise PolicyError(f"substitute {self!r} has {len(weights)} coefficients for {len(seen)} refreshes")
            found[row, : len(weights)] = weights
        return found

    def many_corrected_coefficients(
        self, t: NDArray[np.float64], refreshes: NDArray[np.float64], following: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return `corrected_coefficients` at many points; one by one unless it says otherwise.

        Args:
            t: ``(M,)`` noise levels of the skipped evaluations.
            refreshes: ``(M, n)`` noise levels of the last refreshes of each, newest first.
            following: ``(M,)`` noise levels of the next evaluations.

        Returns:
            ``(M, 1 + n)`` float64: the next evaluation, then the refreshes; 0 for those that do not count.
        """
        found = np.zeros((len(t), 1 + refreshes.shape[1]))
        rows = zip(t.tolist(), refreshes.tolist(), following.tolist(), strict=True)
        for row, (level, seen, after) in enumerate(rows):
            weights = self.corrected_coefficients(level, seen, after)
            found[row, : len(weights)] = weights
        return found


def order_of(substitute: Substitute) -> int | None:
    """Return the order of an extrapolation, ``None`` for any other substitute."""
    return substitute.order if isinstance(substitute, Extrapolation) else None
