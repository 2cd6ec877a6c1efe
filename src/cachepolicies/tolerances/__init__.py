"""Tolerance schedules: how far the output may have moved at each step, one file each."""

from cachepolicies.contracts.tolerance import ToleranceAt as ToleranceAt
from cachepolicies.contracts.tolerance import ToleranceSchedule as ToleranceSchedule
from cachepolicies.tolerances.constant import Constant as Constant
from cachepolicies.tolerances.of_t import OfT as OfT
from cachepolicies.tolerances.optimal import Optimal as Optimal
from cachepolicies.tolerances.planned import Planned as Planned
from cachepolicies.tolerances.resolve import Tolerance as Tolerance
from cachepolicies.tolerances.resolve import as_tolerance as as_tolerance
from cachepolicies.tolerances.two_phase import TwoPhase as TwoPhase

__all__ = [
    "Constant",
    "OfT",
    "Optimal",
    "Planned",
    "Tolerance",
    "ToleranceAt",
    "ToleranceSchedule",
    "TwoPhase",
    "as_tolerance",
]
