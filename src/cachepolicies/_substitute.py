"""The contract of a substitute: *what* stands in for a skipped evaluation?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import Profile
    from cachepolicies.schedulers.base import Scheduler


FILLED_IN = {"cachepolicies": "filled in at set-up"}
"""Metadata of a substitute's fields that set-up fills in; a plan's spec of the substitute leaves them out."""


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


@frozen(eq=False)
class Prediction:
    """A stand-in together with the order that it has in every row.

    Attributes:
        output: ``(B, ...)`` the stand-in, as `Substitute.predict` returns it.
        order: for each row the order really used, lower than the substitute's own while the row's history is short.
    """

    output: Tensor
    order: tuple[int, ...]


@runtime_checkable
class Substitute(Protocol):
    """Computes a stand-in for the denoiser's output from remembered ones. Frozen settings, no state of its own."""

    name: ClassVar[str]
    """Short name, shown in traces and errors."""

    @property
    def history(self) -> int:
        """How many refreshes the store has to keep, at least 1. Memory is that many outputs a branch."""
        ...

    def predict(self, t: float, history: Sequence[Refresh]) -> Tensor | Prediction:
        """Return the stand-in at t for every row.

        Args:
            t: noise level of the skipped evaluation.
            history: up to ``self.history`` refreshes, newest first. The newest is filled in every row that will be
                used; what is returned for the other rows is ignored.

        Returns:
            ``(B, ...)`` of the dtype of the remembered outputs. A remembered tensor itself may be returned: the
            engine copies before it hands out. As a `Prediction`, with the order of every row, where there is one to
            record.
        """
        ...


@runtime_checkable
class Guarded(Protocol):
    """A substitute whose stand-ins may leave the range of what was evaluated; optional, beside `Substitute`."""

    @property
    def guard(self) -> float | None:
        """How far the RMS of a row may leave the range seen so far, a factor >= 1; ``None`` for no such limit.

        The range is that of the row's evaluated outputs since the run began. Outside ``[lowest / guard, highest *
        guard]`` the engine holds the newest output instead, and the trace says so. A row that is not finite never
        passes, whatever the guard.
        """
        ...


@runtime_checkable
class Extrapolation(Guarded, Protocol):
    """A substitute that is a linear combination of remembered outputs; optional, beside `Substitute`.

    What follows this protocol can be planned for: the error of any such combination is known from the differences
    between the outputs of the calibration runs.
    """

    @property
    def order(self) -> int:
        """Order once the history is long enough; ``history`` is one more."""
        ...

    def time(self, t: float) -> float:
        """Return the point on the axis that the substitute extrapolates in, which belongs to the noise level t."""
        ...

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
        ...


@runtime_checkable
class ManyCoefficients(Protocol):
    """An extrapolation that computes many coefficients at once, so that planning is fast; optional."""

    def many_coefficients(self, t: NDArray[np.float64], refreshes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `Extrapolation.coefficients` at many points.

        Args:
            t: ``(M,)`` noise levels of the skipped evaluations.
            refreshes: ``(M, n)`` noise levels of the last refreshes of each, newest first.

        Returns:
            ``(M, n)``, 0 for refreshes that do not count.
        """
        ...


@runtime_checkable
class InSchedulerTime(Protocol):
    """A substitute that extrapolates in the sampler's own time; optional, beside `Substitute`."""

    def on(self, scheduler: Scheduler | None, profile: Profile | None = None) -> Substitute:
        """Return the substitute as it works on a scheduler; called once, at set-up.

        Args:
            scheduler: noise schedule and sampler in use, or ``None`` if they are not known.
            profile: what calibration measured, or ``None`` if there is no profile.

        Raises:
            NeedsError: the settings ask for an axis that cannot be had without the scheduler or the profile.
        """
        ...


@runtime_checkable
class Noted(Protocol):
    """A substitute with something to say in the trace of every run; optional, beside `Substitute`."""

    @property
    def notes(self) -> Sequence[str]:
        """Whole sentences or none, each for one line."""
        ...
