"""Reading a table between its points: piecewise-linear curves on plain tuples, fast enough for every step of a run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from attrs import frozen


def segment(points: Sequence[float], x: float) -> int:
    """Return the index of the point at which the segment of x begins; of the first or the last one beyond the ends.

    Args:
        points: at least two, strictly rising.
        x: where to read; not NaN.
    """
    return min(max(bisect_right(points, x), 1), len(points) - 1) - 1


def locate(points: Sequence[float], x: float) -> tuple[int, float]:
    """Return the last point at or before x, and which share of the way to the next one x has gone, below 1.

    At a point the share is 0, so that a table is read there without rounding. Beyond the ends it is the end's point.

    Args:
        points: at least one, strictly rising.
        x: where to read; not NaN.
    """
    right = bisect_right(points, x)
    if right == 0:
        return 0, 0.0
    if right == len(points):
        return right - 1, 0.0
    start = points[right - 1]
    return right - 1, (x - start) / (points[right] - start)


@frozen
class PiecewiseLinear:
    """Values at rising points, linear between them and constant beyond the ends.

    Attributes:
        points: M numbers, at least one, strictly rising.
        values: as many, finite.
    """

    points: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, x: float) -> float:
        """Return the value at x; well under a microsecond."""
        points, values = self.points, self.values
        right = bisect_right(points, x)
        if right == 0:
            return values[0]
        if right == len(points):
            return values[-1]
        start = points[right - 1]
        share = (x - start) / (points[right] - start)
        return values[right - 1] * (1.0 - share) + values[right] * share

    def nearest(self, x: float) -> float:
        """Return the value of the point nearest to x; of two equally near ones, of the larger."""
        points = self.points
        right = bisect_right(points, x)
        if right == 0:
            return self.values[0]
        if right == len(points):
            return self.values[-1]
        return self.values[right if points[right] - x <= x - points[right - 1] else right - 1]
