"""Runs whose latent moves at a steady pace, and a score that is the distance it has moved."""

from __future__ import annotations

import numpy as np

from cachepolicies import Score


class Distance(Score):
    """A score that is the displacement itself; remembers what it was asked."""

    name, order = "distance", 0

    def __init__(self, order=0):
        self.order = order
        self.asked = []

    def at(self, refreshes, t, displacement):
        self.asked.append((tuple(refreshes), t, displacement))
        return displacement


def steady(count):
    """Timesteps, and the distances of the latent between any two of them."""
    ts = np.arange(count, 0, -1.0)
    return tuple(ts), np.abs(np.subtract.outer(ts, ts))
