"""A plan: its checked fields, which can be asked for another budget, and which rich prints as tables."""

from __future__ import annotations

from attrs import frozen
from rich.console import Group

from cachepolicies.planning.plan_fields import PLAN as PLAN
from cachepolicies.planning.plan_fields import PlanError as PlanError
from cachepolicies.planning.plan_fields import PlanFields
from cachepolicies.planning.plan_fields import PlanPoint as PlanPoint
from cachepolicies.planning.plan_fields import PlanSource as PlanSource
from cachepolicies.planning.summary import summarise_plan


@frozen
class Plan(PlanFields):
    """Which steps of a run to refresh, what that was computed from, and the errors that are predicted.

    Attributes:
        source: the profile.
        timesteps: N values of the scheduler's t, strictly decreasing, one per step of the planned run.
        substitute: spec of the substitute that was planned for; its refresh steps are wrong for another one.
        objective: name of the objective, ``"signed"``, ``"sum"``, ``"max"``, ``"lexicographic"`` or a plugin's.
        errors: ``"measured"`` or ``"predicted"``, where the errors of a reuse are from.
        weights_kind: ``"geometric"``, ``"measured"``, ``"bound"`` or ``"uniform"``.
        method: ``"shortest-path"``; ``"milp"`` in files of an earlier version, which could ask a mixed-integer solver.
        max_reuse: largest number of reuses in a row, None without a limit.
        always: steps that were to be refreshed whatever the budget, increasing.
        budget: largest number of refreshes that was allowed.
        target: what the budget was chosen for, None where the budget was given.
        target_unit: ``"objective"``, the target was compared with ``predicted``; ``"dB"`` or ``"rms"``, with the PSNR
            or the RMS that are expected of new samples.
        refreshes: steps that are refreshed, increasing, 0 first; at most ``budget``.
        predicted: the objective's value (for ``"lexicographic"`` the largest weighted error): RMS change of the sample
            where the weights are measured, a bound of it with ``"bound"``, RMS change of the output with ``"uniform"``.
        weights: one per step: RMS change of the sample per RMS change of the output.
        step_errors: one per step: predicted RMS change of the output by the reuse; 0 where it is refreshed.
        expected: what to expect on new samples, None where the profile has no trials of such plans; not given, it is
            the curve's.
        curve: the best for every budget from the smallest possible to N, in order; with the method ``"milp"`` only for
            those that were solved. The prediction never rises with the budget.
        tolerance: the tolerance over t with which SenCache's rule repeats the plan on the calibration runs, or None.
        no_tolerance: why there is none; None where there is one.
        versions: distribution name to version, of the planning.
        created: UTC time in ISO 8601; provenance only, left out of comparisons.
        notes: free text.
        version: of the format.

    Raises:
        PlanError: a field is out of range or does not fit the others.
    """

    def __rich__(self) -> Group:
        return summarise_plan(self)

    def at_budget(self, budget: int) -> PlanPoint:
        """Return the point of the trade-off curve for a budget.

        Raises:
            PlanError: there is none; says which budgets there are.
        """
        for point in self.curve:
            if point.budget == budget:
                return point
        known = [point.budget for point in self.curve]
        raise PlanError(f"the plan has no budget {budget!r}; it has {', '.join(map(str, known))}")
