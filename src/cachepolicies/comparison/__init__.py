"""Compare ways of sampling one workload: cost, distance to the uncached samples, scores; as table, files and report."""

from __future__ import annotations

from cachepolicies.comparison.candidate import Candidate as Candidate
from cachepolicies.comparison.report import write_all as write_all
from cachepolicies.comparison.report import write_report as write_report
from cachepolicies.comparison.results import Change as Change
from cachepolicies.comparison.results import Comparison as Comparison
from cachepolicies.comparison.results import Result as Result
from cachepolicies.comparison.runner import compare as compare
from cachepolicies.comparison.runner import matched_baselines as matched_baselines
from cachepolicies.comparison.workload import Inputs as Inputs
from cachepolicies.comparison.workload import Workload as Workload
from cachepolicies.comparison.workload import load_workload as load_workload

__all__ = [
    "Candidate",
    "Change",
    "Comparison",
    "Inputs",
    "Result",
    "Workload",
    "compare",
    "load_workload",
    "matched_baselines",
    "write_all",
    "write_report",
]
