"""Tolerance schedules: how far the output may have moved at each step, one file each."""

from cachepolicies.tolerances._resolve import Tolerance as Tolerance
from cachepolicies.tolerances._resolve import as_tolerance as as_tolerance
from cachepolicies.tolerances.base import ChecksSetup as ChecksSetup
from cachepolicies.tolerances.base import LimitsReuse as LimitsReuse
from cachepolicies.tolerances.base import ToleranceAt as ToleranceAt
from cachepolicies.tolerances.base import ToleranceSchedule as ToleranceSchedule
from cachepolicies.tolerances.constant import Constant as Constant
from cachepolicies.tolerances.of_t import OfT as OfT
from cachepolicies.tolerances.optimal import Optimal as Optimal
from cachepolicies.tolerances.planned import Planned as Planned
from cachepolicies.tolerances.two_phase import TwoPhase as TwoPhase

__all__ = [
    "ChecksSetup",
    "Constant",
    "LimitsReuse",
    "OfT",
    "Optimal",
    "Planned",
    "Tolerance",
    "ToleranceAt",
    "ToleranceSchedule",
    "TwoPhase",
    "as_tolerance",
]
