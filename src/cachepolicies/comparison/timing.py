"""Wall times that know how busy the machine was while they were taken."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from attrs import define

MOST_WAITED = 0.05
"""Share of their time that the threads may have waited for a core in a time that is believed."""
MOST_DRIFT = 0.15
"""Spread of the repeats, over their median, in a time that is believed."""

_THREADS = Path("/proc/self/task")


class Doubt(Enum):
    """Why a wall time is not believed; the value says it to a reader."""

    BUSY = "machine was busy: time not reliable"
    DRIFT = "times drifted from repeat to repeat: time not reliable"


class WallTime(float):
    """Seconds, and what part of its time the process waited for a core.

    Attributes:
        waited: time that its threads were ready to run and had to wait / that and the time they ran; ``nan`` where the
            system does not say.
    """

    waited: float

    def __new__(cls, seconds: float, waited: float = math.nan) -> WallTime:
        """Return the seconds with what was waited."""
        made = super().__new__(cls, seconds)
        made.waited = waited
        return made


def as_wall_times(seconds: Sequence[float]) -> tuple[WallTime, ...]:
    """Return the seconds as wall times; of plain numbers it is not known how busy the machine was."""
    return tuple(value if isinstance(value, WallTime) else WallTime(value) for value in seconds)


@define
class Stopwatch:
    """Adds up wall time over several laps, and what the threads of this process waited for a core meanwhile.

    Linux counts the wait of every thread. Elsewhere it is estimated from the load of the last minute: what there is to
    run beyond the cores. Where there is no load either it is not known.
    """

    seconds: float = 0.0
    _ran: float = 0.0
    _queued: float = 0.0
    _counted: bool = True
    _begun: tuple[float, tuple[float, float] | None] = (0.0, None)

    def start(self) -> None:
        """Begin a lap."""
        used = _thread_times()
        self._begun = (time.perf_counter(), used)

    def stop(self) -> None:
        """End it."""
        started, before = self._begun
        self.seconds += time.perf_counter() - started
        after = _thread_times()
        if before is None or after is None:
            self._counted = False
            return
        # a thread that ended in between takes its times along
        self._ran += max(0.0, after[0] - before[0])
        self._queued += max(0.0, after[1] - before[1])

    def read(self) -> WallTime:
        """Return the time of all laps."""
        total = self._ran + self._queued
        if self._counted and total > 0:
            return WallTime(self.seconds, self._queued / total)
        return WallTime(self.seconds, _beyond_cores())


def doubt_of(times: Sequence[WallTime]) -> Doubt | None:
    """Return why the median of some repeats is not believed, or ``None`` if it is."""
    if waited(times) > MOST_WAITED:
        return Doubt.BUSY
    return Doubt.DRIFT if drift(times) > MOST_DRIFT else None


def waited(times: Sequence[WallTime]) -> float:
    """Return the part of its time that the process waited for a core, the median of the repeats; ``nan`` if unknown."""
    known = [each.waited for each in times if not math.isnan(each.waited)]
    return statistics.median(known) if known else math.nan


def drift(times: Sequence[float]) -> float:
    """Return how far the repeats lie apart, over their median: twice the median distance to it; 0 for one repeat."""
    middle = statistics.median(times)
    if len(times) < 2 or middle <= 0:
        return 0.0
    return 2 * statistics.median(abs(each - middle) for each in times) / middle


def _thread_times() -> tuple[float, float] | None:
    """Return the seconds that the threads of this process ran, and that they waited; ``None`` if it is not counted."""
    ran = queued = 0
    try:
        threads = list(_THREADS.iterdir())
    except OSError:
        return None
    for thread in threads:
        with contextlib.suppress(OSError):  # the thread has ended
            first, second, *_ = (thread / "schedstat").read_text().split()
            ran, queued = ran + int(first), queued + int(second)
    return (ran * 1e-9, queued * 1e-9) if ran else None


def _beyond_cores() -> float:
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # not on Windows
        return math.nan
    return max(0.0, 1 - (os.cpu_count() or 1) / load) if load > 0 else 0.0
