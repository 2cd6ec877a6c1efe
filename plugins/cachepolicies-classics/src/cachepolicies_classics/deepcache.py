"""DeepCache (Ma et al., arXiv 2312.00858): the inner layers of a U-Net are computed at some steps only."""

from __future__ import annotations

import math
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, instance_of, le, optional

from cachepolicies import CachePolicy, Decision, Needs, RunInfo, SettingsError, Site, Step
from cachepolicies.sites import SkipBranch
from cachepolicies_classics._reasons import Why

_LOWERED = 0.02
"""How much the power is lowered by until all key steps are distinct."""


def key_steps(steps: int, keys: int, center: float, power: float) -> tuple[int, ...]:
    """Return key steps that lie densest around one of the steps.

    Key j is step ``x_j ** power + center`` rounded down, for ``x`` evenly spaced between the roots of the first and the
    last step, signs kept; the power is lowered until the keys are distinct (arXiv 2312.00858, section 3.3).

    Args:
        steps: of the run.
        keys: how many to return.
        center: step around which they lie densest.
        power: above 1; the larger, the denser.

    Raises:
        SettingsError: no power above 1 gives so many distinct keys.
    """

    def root(offset: float, exponent: float) -> float:
        return math.copysign(abs(offset) ** (1.0 / exponent), offset)

    exponent = power
    while exponent > 1.0:
        first, last = root(-center, exponent), root(steps - center, exponent)
        found = {0}
        for at in range(1, keys):
            x = first + (last - first) * at / keys
            found.add(int(math.copysign(abs(x) ** exponent, x) + center))
        if len(found) == keys:
            return tuple(sorted(found))
        exponent -= _LOWERED
    raise SettingsError(
        f"deepcache: center={center:g}, power={power:g} give no {keys} distinct key steps of {steps}; choose a center "
        "nearer the middle of the run, or a larger interval"
    )


@frozen
class DeepCache(CachePolicy):
    """Compute a U-Net below one of its skip connections at every n-th step, or at key steps that lie dense somewhere.

    At the other steps only the layers above the connection run, with the current latent and t, and what they get from
    below is what it was at the last key step.

    It reads nothing but the number of the step. It cuts at the site ``"skip-branch"``; ``hold`` stands in. It costs the
    memory of one feature map. It helps with U-Nets (Stable Diffusion 1, 2, XL), whose inner layers change slowly and
    cost most. What users run into: few-step and image-to-image runs have few steps to skip; the first steps of samplers
    with much noise suffer most; a ControlNet's features reach the layers above the connection only.

    Published: ``interval=3`` by default, 5 for Stable Diffusion 1.5 (2.3 times as fast), up to 10 for LDM-4-G; branch
    0; ``power`` about 1.2 to 1.4 for keys that are not evenly spaced.

    Attributes:
        interval: n: of N steps, the first of every n is a key step; 1 computes everything.
        branch: number of the skip connection, 0 is the topmost; see the site ``skip-branch``.
        center: step around which the N / n key steps lie densest; ``None`` for evenly spaced ones.
        power: how dense they lie there, above 1, up to 10.
    """

    name: ClassVar[str] = "deepcache"

    interval: int = field(default=3, validator=[instance_of(int), ge(1)])
    branch: int = field(default=0, validator=[instance_of(int), ge(0)])
    center: float | None = field(default=None, validator=optional(and_(instance_of((int, float)), ge(-1e6), le(1e6))))
    power: float = field(default=1.2, validator=[instance_of((int, float)), gt(1.0), le(10.0)])

    @property
    def site(self) -> Site:
        """Below the skip connection."""
        return SkipBranch(self.branch)

    @property
    def needs(self) -> Needs:
        """The run length."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is a key step."""
        return self.interval > 1

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the key steps."""
        steps = run.num_steps or 0
        if self.center is None or not self.reuses:
            return frozenset(range(0, steps, self.interval))
        return frozenset(key_steps(steps, max(steps // self.interval, 1), self.center, self.power))

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Hold between key steps."""
        key = step.index in state
        return Decision.same(not key, Why.KEY if key else Why.HELD, step.run.decisions)
