"""The policy: some of the blocks are held at some of the steps."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of, optional
from torch import Tensor

from cachepolicies import CachePolicy, Decision, Needs, NeedsError, PolicySettings, Reason, RunInfo, Setup, Step
from cachepolicies.contracts import Grain


class Why(Reason):
    """Why a block is evaluated or held."""

    NOT_ITS_TURN = "a block that is always evaluated"
    EVALUATED = "its step to be evaluated"
    HELD = "its turn to be held"
    LARGE = "the latent is still large"


@frozen
class AlternateBlocks(PolicySettings):
    """Hold every m-th place of the site at all but every n-th step.

    Attributes:
        blocks: m: of places 0, 1, 2, ... those with number m - 1, 2 m - 1, ... are held; 1 holds all.
        steps: n: a place that is held is evaluated at every n-th step; 1 never holds.
        below: hold only where the RMS of every sample's latent is below this; ``None`` wherever it is.
    """

    name: ClassVar[str] = "alternate-blocks"

    blocks: int = field(default=2, validator=[instance_of(int), ge(1)])
    steps: int = field(default=2, validator=[instance_of(int), ge(1)])
    below: float | None = field(default=None, validator=optional(instance_of((int, float))))

    def resolve(self, setup: Setup) -> HoldsPlaces:
        """Return the policy for the places of the site.

        Raises:
            NeedsError: there is no site.
        """
        if setup.site is None:
            raise NeedsError("alternate-blocks decides for the places of a site, and there is no site in this set-up")
        held = setup.site.places[self.blocks - 1 :: self.blocks]
        return HoldsPlaces(frozenset(held), self.steps, self.below)


@frozen
class HoldsPlaces(CachePolicy):
    """`AlternateBlocks` on a site.

    Attributes:
        held: names of the places that are held by turns.
        steps: a held place is evaluated at every n-th step.
        below: of the latent's RMS, or ``None``.
    """

    name: ClassVar[str] = "alternate-blocks"

    held: frozenset[str] = field(repr=lambda places: f"{len(places)} places")
    steps: int
    below: float | None

    @property
    def grain(self) -> Grain:
        """Every place decides for itself."""
        return "place"

    @property
    def needs(self) -> Needs:
        """The size of the latent, if it matters."""
        return Needs() if self.below is None else Needs(signals=("latent-rms",))

    @property
    def reuses(self) -> bool:
        """Unless every step is to be evaluated, or there is no place to hold."""
        return self.steps > 1 and bool(self.held)

    def start(self, run: RunInfo) -> tuple[int, ...]:
        """Return how often each deciding sample was held in a row at a place: not yet."""
        return (self.steps,) * run.decisions

    def decide(self, step: Step, state: tuple[int, ...]) -> Decision:
        """Hold where it is the place's turn, and the sample's."""
        count = step.run.decisions
        if step.place not in self.held:
            return Decision.same(False, Why.NOT_ITS_TURN, count)
        if self.below is not None:
            (sizes,) = step.read(step.signals["latent-rms"].flatten())
            if max(sizes) >= self.below:
                return Decision.same(False, Why.LARGE, count)
        reuse = tuple(held < self.steps - 1 for held in state)
        return Decision(reuse, tuple(Why.HELD if yes else Why.EVALUATED for yes in reuse))

    def observe(self, step: Step, decision: Decision, output: Tensor, state: Any) -> tuple[int, ...]:
        """Count what was held, which need not be what was wanted."""
        return tuple(held + 1 if again else 0 for held, again in zip(state, decision.reuse, strict=True))
