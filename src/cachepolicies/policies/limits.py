"""Limits: what may be laid around any policy, whatever its own rule says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import evolve, field, fields, frozen
from attrs.validators import optional
from torch import Tensor

from cachepolicies.base.settings import fraction, non_negative_int, one_of, plain, positive_int
from cachepolicies.contracts.policy import CachePolicy, Decision, Grain, Needs, PolicySettings
from cachepolicies.contracts.reasons import Reason
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import Site
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.contracts.substitute import Substitute

Rounding = Literal["floor", "half-up", "ceil"]
"""How a part of a run is rounded to whole steps."""

_WHOLE: Mapping[str, Callable[[float], int]] = {
    "floor": math.floor,
    "half-up": lambda steps: math.floor(steps + 0.5),
    "ceil": math.ceil,
}


class LimitReason(Reason):
    """Why a limit decided."""

    FIRST = "protected first step"
    LAST = "protected last step"
    RETENTION = "first part of the run"
    STREAK = "max_reuse reached"
    SPENT = "budget spent"


@frozen(kw_only=True, repr=False)
class Limits:
    """Limits of reuse, in one vocabulary for every policy. What is not given does not limit.

    Attributes:
        protect_first: this many steps at the start are always evaluated; more than 1 needs a declared run.
        protect_last: this many steps at the end are always evaluated; needs a declared run.
        retention: in this part of the run, from its start, nothing is reused; of the steps when the run was declared,
            else of t.
        rounding: of ``retention`` times the number of steps.
        max_reuse: largest number of consecutive reuses of a sample.
        max_nfe: hard budget of evaluations of each deciding sample in a run, branches at one t counted once. Once it is
            spent the sample is reused, whatever the policy and the other limits say. The engine's own checks go
            before: where nothing is cached, or what is cached is not finite, it evaluates.
    """

    protect_first: int = field(default=0, converter=plain, validator=non_negative_int)
    protect_last: int = field(default=0, converter=plain, validator=non_negative_int)
    retention: float = field(default=0.0, converter=plain, validator=fraction)
    rounding: Rounding = field(default="half-up", validator=one_of(*_WHOLE))
    max_reuse: int | None = field(default=None, converter=plain, validator=optional(non_negative_int))
    max_nfe: int | None = field(default=None, converter=plain, validator=optional(positive_int))

    def __repr__(self) -> str:
        given = (f"{a.name}={getattr(self, a.name)!r}" for a in fields(Limits) if getattr(self, a.name) != a.default)
        return f"Limits({', '.join(given)})"

    def protects(self, step: Step) -> Reason | None:
        """Return why a step is evaluated whatever the sample looks like, ``None`` where it need not be."""
        steps = step.run.num_steps
        if step.index is not None and steps is not None:
            if step.index < self.protect_first:
                return LimitReason.FIRST
            if step.index >= steps - self.protect_last:
                return LimitReason.LAST
            retained = step.index < _WHOLE[self.rounding](self.retention * steps)
        else:
            retained = step.run.in_first(self.retention, step.t)
        return LimitReason.RETENTION if retained else None


@frozen
class Limited(PolicySettings):
    """A policy within limits, as a user writes it: ``Limited("magcache", Limits(protect_last=2))``.

    Attributes:
        policy: any policy's settings.
        limits: laid around it.
    """

    policy: PolicySettings
    limits: Limits

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def site(self) -> str | Site | None:
        """The policy's."""
        return self.policy.site

    @property
    def substitute(self) -> str | Substitute | None:
        """The policy's."""
        return self.policy.substitute

    def resolve(self, setup: Setup) -> CachePolicy:
        """Return the policy, resolved, within the limits."""
        return within_limits(self.policy.resolve(setup), self.limits)


@frozen(eq=False)
class _State:
    """The policy's own state, and one entry for each decision.

    Attributes:
        inner: of the policy.
        reused: consecutive reuses.
        evaluated: evaluations in this run.
    """

    inner: Any
    reused: tuple[int, ...]
    evaluated: tuple[int, ...]


@frozen
class LimitedPolicy(CachePolicy):
    """A policy that is overruled where a limit is reached; see `Limits`.

    The policy is not asked where the limits decide for every sample, so that no tensor is read then.

    Attributes:
        policy: the policy, resolved.
        limits: laid around it.
    """

    policy: CachePolicy
    limits: Limits

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def needs(self) -> Needs:
        """What the policy needs; the run length, to protect steps that are not evaluated anyway."""
        needs = self.policy.needs
        protects = self.limits.protect_first > 1 or self.limits.protect_last > 0
        return evolve(needs, run_length=True) if protects and not needs.run_length else needs

    @property
    def reuses(self) -> bool:
        """Whether the policy does and may; with a budget in any case, since a spent one reuses."""
        return self.limits.max_nfe is not None or (self.policy.reuses and self.limits.max_reuse != 0)

    @property
    def grain(self) -> Grain:
        """The policy's."""
        return self.policy.grain

    @property
    def by_branch(self) -> bool:
        """The policy's."""
        return self.policy.by_branch

    def start(self, run: RunInfo) -> _State:
        """Return the policy's state, with nothing counted."""
        none = (0,) * run.decisions
        return _State(self.policy.start(run), none, none)

    def decide(self, step: Step, state: _State) -> Decision:
        """Ask the policy, unless the limits say it all."""
        count, most = step.run.decisions, self.limits.max_nfe
        spent = (False,) * count if most is None else tuple(done >= most for done in state.evaluated)
        if all(spent):
            return Decision.same(True, LimitReason.SPENT, count)
        # Before the first evaluation there is nothing to protect: the policy, or the engine, says that best.
        protected = self.limits.protects(step) if any(state.evaluated) else None
        if protected is not None and not any(spent):
            return Decision.same(False, protected, count)
        wanted = self.policy.decide(step, state.inner)
        streak = self.limits.max_reuse
        if len(wanted.reuse) != count or (protected is None and not any(spent) and self._may(wanted, state)):
            return wanted  # what is malformed is for the engine to refuse
        reuse, reason = list(wanted.reuse), list(wanted.reason)
        for d in range(count):
            if spent[d]:
                reuse[d], reason[d] = True, LimitReason.SPENT
            elif protected is not None:
                reuse[d], reason[d] = False, protected
            elif reuse[d] and streak is not None and state.reused[d] >= streak:
                reuse[d], reason[d] = False, LimitReason.STREAK
        return evolve(wanted, reuse=tuple(reuse), reason=tuple(reason))

    def _may(self, wanted: Decision, state: _State) -> bool:
        """Return whether no streak would become too long."""
        most = self.limits.max_reuse
        return most is None or all(n < most for n, again in zip(state.reused, wanted.reuse, strict=True) if again)

    @property
    def observes_places(self) -> bool:
        """Whether the policy does."""
        return self.policy.observes_places

    def observe_place(self, step: Step, place: str, decision: Decision, output: Tensor, state: _State) -> _State:
        """Tell the policy."""
        return evolve(state, inner=self.policy.observe_place(step, place, decision, output, state.inner))

    @property
    def verifies(self) -> bool:
        """Whether the policy does."""
        return self.policy.verifies

    def verify(self, step: Step, place: str, drafted: Tensor, computed: Tensor, state: _State) -> _State:
        """Tell the policy."""
        return evolve(state, inner=self.policy.verify(step, place, drafted, computed, state.inner))

    def observe(self, step: Step, decision: Decision, output: Tensor, state: _State) -> _State:
        """Count, and tell the policy what was done."""
        kept = decision.reuse
        return _State(
            self.policy.observe(step, decision, output, state.inner),
            tuple(n + 1 if again else 0 for n, again in zip(state.reused, kept, strict=True)),
            tuple(n if again else n + 1 for n, again in zip(state.evaluated, kept, strict=True)),
        )


def within_limits(policy: CachePolicy, limits: Limits) -> CachePolicy:
    """Return a policy within limits; the policy itself where nothing is limited."""
    return policy if limits == Limits() else LimitedPolicy(policy, limits)
