"""The contract of a tolerance schedule: *how far* may the output have moved, at each step of a run?"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

from cachepolicies.base.errors import SettingsError
from cachepolicies.contracts.declared import Contract
from cachepolicies.contracts.policy import Needs
from cachepolicies.contracts.step import RunInfo, Step

if TYPE_CHECKING:
    from cachepolicies.contracts.score import Score
    from cachepolicies.contracts.setup import Setup

ToleranceAt: TypeAlias = Callable[[Step], float]
"""The tolerance at a step of one run, an RMS change of the output, finite and >= 0; reads no tensor."""

MAX_REUSE = 3
"""Consecutive reuses where neither the policy's settings nor the tolerance schedule say how many."""


class ToleranceSchedule(Contract, declares=True):
    """Says which tolerance holds at each step. Frozen settings; what belongs to a run is in what ``start`` returns.

    Only ``start`` has to be written.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in messages; a class attribute."""

    @property
    def needs(self) -> Needs:
        """What must be provided for these settings, beside what the policy itself needs; nothing by default."""
        return Needs()

    @property
    def max_reuse(self) -> int | None:
        """Largest number of consecutive reuses where the policy is given none, ``None`` for no limit; 3 by default.

        A first-order bound is true for small moves only, hence a limit. A schedule that was solved for, and weighs long
        streaks itself, gives its own.
        """
        return MAX_REUSE

    def resolve(self, setup: Setup) -> ToleranceSchedule:
        """Return the schedule that works in this set-up; itself unless it says otherwise. Called once.

        Args:
            setup: profile, substitute and scheduler.

        Raises:
            SettingsError: the schedule was made for something else, for example for another substitute.
        """
        return self

    @abstractmethod
    def start(self, run: RunInfo, setup: Setup, score: Score, max_reuse: int) -> ToleranceAt:
        """Return the tolerance of a new run as a function of the step.

        Called at the beginning of every run, once for each group of branches that decides for itself. What is
        expensive is worth remembering by the run's timesteps.

        Args:
            run: what is known of the run before its first evaluation.
            setup: profile, substitute and scheduler.
            score: what the tolerance will be compared with, in the same unit whatever the substitute.
            max_reuse: largest number of consecutive reuses.

        Returns:
            The function. Called twice for one step it gives the same; a Heun step asks twice, at two t.

        Raises:
            NeedsError: something is missing that set-up could not know of, for example the run's timesteps.
            SettingsError: the settings cannot be met on this run.
        """


def checked(value: Any, step: Step, subject: str) -> float:
    """Return a tolerance that somebody computed as a float.

    Args:
        value: what was returned.
        step: where.
        subject: of the message.

    Raises:
        SettingsError: it is no finite number >= 0.
    """
    if type(value) is float and 0 <= value < math.inf:  # at every step of every run
        return value
    tolerance = float(value) if isinstance(value, Real) else math.nan
    if not 0 <= tolerance < math.inf:
        raise SettingsError(f"{subject}({step.t:g}) returned {value!r}; a tolerance is finite and >= 0")
    return tolerance
