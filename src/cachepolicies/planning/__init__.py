"""Planning: which steps of a run to refresh, solved for rather than tuned, and the tolerance that follows from it."""

from __future__ import annotations

from cachepolicies.planning.best import best_plan as best_plan
from cachepolicies.planning.depth import DepthSolution as DepthSolution
from cachepolicies.planning.depth import PlaceErrors as PlaceErrors
from cachepolicies.planning.depth import depth_solutions as depth_solutions
from cachepolicies.planning.depth_record import DepthPlan as DepthPlan
from cachepolicies.planning.depth_record import PlacePart as PlacePart
from cachepolicies.planning.depth_record import read_depth_plan as read_depth_plan
from cachepolicies.planning.depth_record import save_depth_plan as save_depth_plan
from cachepolicies.planning.error_table import table_from_dense as table_from_dense
from cachepolicies.planning.errors import measured_errors as measured_errors
from cachepolicies.planning.errors import predicted_errors as predicted_errors
from cachepolicies.planning.expectation import Expectation as Expectation
from cachepolicies.planning.expectation import Interval as Interval
from cachepolicies.planning.io import read_plan as read_plan
from cachepolicies.planning.io import save_plan as save_plan
from cachepolicies.planning.objectives import Largest as Largest
from cachepolicies.planning.objectives import Lexicographic as Lexicographic
from cachepolicies.planning.objectives import Objective as Objective
from cachepolicies.planning.objectives import Signed as Signed
from cachepolicies.planning.objectives import Sum as Sum
from cachepolicies.planning.plan_record import Plan as Plan
from cachepolicies.planning.plan_record import PlanError as PlanError
from cachepolicies.planning.plan_record import PlanPoint as PlanPoint
from cachepolicies.planning.plan_record import PlanSource as PlanSource
from cachepolicies.planning.planner import plan as plan
from cachepolicies.planning.plot import plot_plan as plot_plan
from cachepolicies.planning.problem import PlanningProblem as PlanningProblem
from cachepolicies.planning.problem import Solution as Solution
from cachepolicies.planning.shortest_path import trade_off as trade_off
from cachepolicies.planning.stretches import signed_sums as signed_sums
from cachepolicies.planning.summary import summarise_plan as summarise_plan
from cachepolicies.planning.tolerance_curve import ToleranceCurve as ToleranceCurve
from cachepolicies.planning.tolerance_fit import InfeasibleToleranceError as InfeasibleToleranceError
from cachepolicies.planning.tolerance_fit import fit as fit
from cachepolicies.planning.weights import WeightKind as WeightKind
from cachepolicies.planning.weights import step_weights as step_weights

__all__ = [
    "DepthPlan",
    "DepthSolution",
    "Expectation",
    "InfeasibleToleranceError",
    "Interval",
    "Largest",
    "Lexicographic",
    "Objective",
    "PlaceErrors",
    "PlacePart",
    "Plan",
    "PlanError",
    "PlanPoint",
    "PlanSource",
    "PlanningProblem",
    "Signed",
    "Solution",
    "Sum",
    "ToleranceCurve",
    "WeightKind",
    "best_plan",
    "depth_solutions",
    "fit",
    "measured_errors",
    "plan",
    "plot_plan",
    "predicted_errors",
    "read_depth_plan",
    "read_plan",
    "save_depth_plan",
    "save_plan",
    "signed_sums",
    "step_weights",
    "summarise_plan",
    "table_from_dense",
    "trade_off",
]
