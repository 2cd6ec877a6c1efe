"""Uniform: evaluate at evenly spaced steps, whatever the sample looks like."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen, validators

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import positive_int
from cachepolicies.contracts.policy import CachePolicy, Decision, Needs
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.step import RunInfo, Step


class UniformReason(Reason):
    """Why it evaluates or reuses."""

    EVALUATION = "scheduled evaluation"
    REUSE = "scheduled reuse"


@frozen
class Uniform(CachePolicy):
    """Evaluate every m-th step, or a given number of evenly spaced steps. Set one of the two, or give a budget.

    The steps are counted by noise level in the declared timesteps, so a Heun step's second evaluation, a rejected
    step or a jump back does not shift them. Decisions need no tensor and no host synchronisation.

    Attributes:
        every: evaluate the steps 0, m, 2m, ...
        evaluations: evaluate this many steps: step ``floor(i * N / evaluations)`` of N for i = 0, 1, ...
    """

    name: ClassVar[str] = "uniform"

    knob: ClassVar[str] = "evaluations"

    every: int | None = field(default=None, validator=validators.optional(positive_int))
    evaluations: int | None = field(default=None, validator=validators.optional(positive_int))

    def __attrs_post_init__(self) -> None:
        if self.every is not None and self.evaluations is not None:
            raise SettingsError(
                f"Uniform: set exactly one of every and evaluations, got every={self.every}, "
                f"evaluations={self.evaluations}"
            )

    def with_knob(self, value: float) -> Uniform:
        """Return the policy with another number of evaluations.

        Raises:
            SettingsError: ``every`` says already how many there are.
        """
        if self.every is not None:
            raise SettingsError(f"Uniform: every={self.every} beside a budget; give one of them")
        return Uniform(evaluations=int(value))

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the policy itself.

        Raises:
            SettingsError: neither ``every`` nor ``evaluations`` is set, and no budget said how many.
        """
        if self.every is None and self.evaluations is None:
            raise SettingsError("Uniform: set exactly one of every and evaluations, or give a budget; got neither")
        return self

    @property
    def needs(self) -> Needs:
        """The run length: a step is known by its place in the declared timesteps only."""
        return Needs(run_length=True)

    @property
    def reuses(self) -> bool:
        """Unless every step is evaluated."""
        return self.every != 1

    def start(self, run: RunInfo) -> frozenset[int]:
        """Return the steps to evaluate.

        Raises:
            SettingsError: more evaluations are wanted than the run has steps.
        """
        steps = run.num_steps or 0
        if self.every is not None:
            return frozenset(range(0, steps, self.every))
        wanted = self.evaluations or 0
        if wanted > steps:
            raise SettingsError(f"Uniform: evaluations={wanted}, but the run has {steps} steps only")
        return frozenset(i * steps // wanted for i in range(wanted))

    def decide(self, step: Step, state: frozenset[int]) -> Decision:
        """Reuse unless the step is one of those to evaluate."""
        if step.index in state:
            return Decision.same(False, UniformReason.EVALUATION, step.run.decisions)
        return Decision.same(True, UniformReason.REUSE, step.run.decisions)
