"""The rows of the study: a rule, a substitute and a budget, and the candidate that stands for them."""

from __future__ import annotations

import thresholds
from attrs import frozen

from cachepolicies import PolicySettings, Profile, Scheduler
from cachepolicies.comparison import Candidate
from cachepolicies.planning import Plan, WeightKind, plan
from cachepolicies.policies import Schedule, SenCache, Uniform
from cachepolicies.substitutes.resolve import substitute_on
from cachepolicies.tolerances import Optimal

NONE, HOLD, LINEAR, PATH = "-", "hold", "linear", "linear:time=path"

FEWER = "fewer steps"
UNIFORM = "uniform"
CONSTANT = "SenCache, constant"
TEACACHE = "TeaCache"
MAGCACHE = "MagCache"
UNWEIGHTED = "schedule, unweighted"
WEIGHTED = "schedule, weighted"
MINIMAX = "schedule, minimax"
PLANNED = "SenCache, eps(t) of the plan"
CLOSED = "SenCache, eps(t) in closed form"
CORRELATED = "SenCache, eps(t) in closed form, correlated"

METHODS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (FEWER, (NONE,)),
    (UNIFORM, (HOLD, LINEAR)),
    (CONSTANT, (HOLD, LINEAR)),
    (TEACACHE, (HOLD, LINEAR)),
    (MAGCACHE, (HOLD, LINEAR)),
    (UNWEIGHTED, (HOLD, LINEAR)),
    (WEIGHTED, (HOLD, LINEAR, PATH)),
    (MINIMAX, (HOLD, LINEAR)),
    (PLANNED, (HOLD, LINEAR, PATH)),
    (CLOSED, (HOLD, LINEAR, PATH)),
    (CORRELATED, (HOLD,)),
)
"""Rule to the substitutes that it is sampled with."""

FIRST = (FEWER, CONSTANT, WEIGHTED, PLANNED)
"""Rules that are sampled before the others, so that an unfinished study has them everywhere."""

EXTRA = (CLOSED, CORRELATED)
"""Rules that are sampled at `EXTRA_BUDGETS` only, for the study to end within the hour."""

EXTRA_BUDGETS = (25, 17, 13)

_SCHEDULES: dict[str, tuple[WeightKind, str]] = {
    UNWEIGHTED: ("uniform", "sum"),
    WEIGHTED: ("measured", "sum"),
    MINIMAX: ("measured", "max"),
}


@frozen
class Row:
    """One cell of the study before it is measured."""

    method: str
    substitute: str
    budget: int

    @property
    def at_blocks(self) -> bool:
        """Whether it is cut at the block stack, as its authors do, rather than at the output."""
        return self.method in (TEACACHE, MAGCACHE)


def rows(budget: int, steps: int, first: bool) -> list[Row]:
    """Return the rows at a budget, of the rules in `FIRST` or of the others; none if the run has not more steps."""
    return [
        Row(method, substitute, budget)
        for method, substitutes in METHODS
        if budget < steps and (method in FIRST) == first and (method not in EXTRA or budget in EXTRA_BUDGETS)
        for substitute in substitutes
    ]


def candidate(row: Row, profile: Profile, scheduler: Scheduler) -> Candidate | None:
    """Return what to sample, or ``None`` where the rule has no setting within one evaluation of the budget."""
    label = f"{row.method} / {row.substitute} / {row.budget}"
    if row.method == FEWER:
        return Candidate(label, None, row.budget, kind="fewer steps")
    policy = _policy(row, profile, scheduler)
    if policy is None:
        return None
    site = "blocks" if row.at_blocks else "output"
    return Candidate(label, policy, profile=profile, substitute=row.substitute, site=site, kind="policy")


def _policy(row: Row, profile: Profile, scheduler: Scheduler) -> PolicySettings | None:
    if row.method == UNIFORM:
        return Uniform(evaluations=row.budget)
    if row.method == CONSTANT:
        return thresholds.sencache(profile, substitute_on(row.substitute, scheduler, profile), row.budget)
    if row.method == TEACACHE:
        return thresholds.teacache(profile, row.budget)
    if row.method == MAGCACHE:
        return thresholds.magcache(profile, row.budget)
    if row.method in _SCHEDULES:
        return Schedule(plan=planned(row, profile))
    if row.method == PLANNED:
        made = planned(row, profile)
        return None if made.tolerance is None else SenCache(epsilon=made)
    return SenCache(epsilon=Optimal(nfe=row.budget), score="correlated" if row.method == CORRELATED else "substitute")


def planned(row: Row, profile: Profile) -> Plan:
    """Return the plan of a row."""
    weights, objective = _SCHEDULES[WEIGHTED if row.method == PLANNED else row.method]
    return plan(profile, row.budget, substitute=row.substitute, weights=weights, objective=objective)
