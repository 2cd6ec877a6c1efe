"""What a comparison found: one `Result` for each way of sampling, as a table, CSV and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import asdict, field, frozen
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from cachepolicies.base.console import PlainTable
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison.verdict import verdict_of
from cachepolicies.engine.trace import Trace

CandidateKind = Literal["uncached", "policy", "fewer steps", "uniform", "foreign"]

FORMAT = "cachepolicies-comparison-1"


@frozen
class Change:
    """A reused evaluation that was made all the same, in an audited pass.

    Attributes:
        seed: of the sample.
        call: number of the call in the run, from 0.
        t: noise level.
        predicted: the policy's score, an RMS change of the output; ``nan`` if the policy has none.
        true: RMS difference between the evaluation and what stood in for it.
    """

    seed: int
    call: int
    t: float
    predicted: float
    true: float


@frozen(eq=False)
class Result:
    """One way of sampling, measured on every seed.

    Attributes:
        label: unique in the comparison.
        kind: uncached, a policy, or one of the two baselines.
        matches: label of the policy whose evaluations a baseline was matched to.
        policy: the policy with its settings, as text; empty where there is none.
        num_steps: of the sampler.
        nfe: evaluations of each sample, from the trace; the count by a wrapper around the model agrees.
        calls: of the denoiser by the sampler, for each sample.
        model_calls: of the model, for any number of rows, all batches together.
        seconds: wall time for all samples, one entry a repeat.
        psnr: of each sample against the uncached one, dB.
        ssim: of each sample, mean over its frames.
        scores: name to one number a sample; ``nan`` where it does not apply.
        pictures: ``(shown, frames, H, W)`` the first samples, for the report.
        traces: one a batch; empty without a cache.
        changes: the audited reuses; empty without an audit.
        notes: what the traces had to say.
        method: policy, substitute and site without their settings; what makes one line of a chart.
    """

    label: str
    kind: CandidateKind
    matches: str | None
    policy: str
    num_steps: int
    nfe: tuple[float, ...]
    calls: int
    model_calls: int
    seconds: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    pictures: Tensor = field(repr=False)
    traces: tuple[Trace, ...] = field(default=(), repr=False)
    changes: tuple[Change, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    method: str = ""

    @property
    def mean_nfe(self) -> float:
        """Evaluations per sample."""
        return statistics.fmean(self.nfe)

    @property
    def cache_ratio(self) -> float:
        """Reused calls / all calls."""
        return 1.0 - self.mean_nfe / self.calls

    @property
    def work(self) -> float:
        """Work of a sample in uncached calls, by FLOPs; ``nan`` where it is not known what a reuse skips."""
        if self.kind == "foreign":
            return math.nan  # what runs beside the network's blocks is not counted
        if not self.traces:
            return float(self.calls)
        parts = [trace.work for trace in self.traces]
        known = [part for part in parts if part is not None]
        return self.calls * statistics.fmean(known) if len(known) == len(parts) else math.nan

    @property
    def wall_time(self) -> float:
        """Median over the repeats, seconds for all samples."""
        return statistics.median(self.seconds)

    def score(self, name: str) -> float:
        """Return the mean of a score over the samples it applies to; ``nan`` if there are none."""
        finite = [value for value in self.scores[name] if math.isfinite(value)]
        return statistics.fmean(finite) if finite else math.nan

    def timeline(self) -> list[str]:
        """Return one line a decision: ``#`` for an evaluated call, ``.`` for a reused one; empty without a cache.

        A call of a site with several places, some of them evaluated, is ``+``.
        """
        return [_line(trace, decision) for trace in self.traces for decision in range(len(trace.nfe_per_sample))]


@frozen(eq=False)
class Comparison:
    """Several ways of sampling the same seeds of one workload, the uncached one first.

    Attributes:
        name: of the workload.
        seeds: of the samples.
        results: the uncached samples, then each candidate followed by its baselines.
        shown: seeds of the samples whose pictures were kept.
        settings: what the comparison was run with, name to text.
        provenance: versions and machine, name to text.
        moved: PSNR of each uncached sample against itself with its first output changed at random, dB; empty where that
            was not looked at.
        failures: label of every candidate that failed while it was sampled, and its error.
        busy: why the wall times say little; empty where they can be believed.
        repeat: Python that makes the comparison again.
    """

    name: str
    seeds: tuple[int, ...]
    results: tuple[Result, ...]
    shown: tuple[int, ...]
    settings: Mapping[str, str]
    provenance: Mapping[str, str]
    moved: tuple[float, ...] = ()
    failures: Mapping[str, str] = field(factory=dict)
    busy: str = ""
    repeat: str = ""

    @property
    def uncached(self) -> Result:
        """The reference."""
        return self.results[0]

    def verdict(self) -> str:
        """Return one sentence: what is saved at what distance, beside fewer steps at as many evaluations."""
        return verdict_of(self)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the workload's scores."""
        return tuple(self.uncached.scores)

    def speed_up(self, result: Result) -> float:
        """Return wall time uncached / wall time of a result, medians over the repeats."""
        return self.uncached.wall_time / max(result.wall_time, 1e-9)

    def calls_saved(self, result: Result) -> float:
        """Return evaluations uncached / evaluations of a result: the speed-up if nothing else took time."""
        return self.uncached.mean_nfe / result.mean_nfe

    def work(self, result: Result) -> float:
        """Return the part of the uncached row's work that a result took, by FLOPs; ``nan`` where it is not known."""
        return result.work / self.uncached.work

    def unstable(self, result: Result) -> tuple[bool, ...]:
        """Return for each sample whether a small change of its first output moves it as far; empty if not looked at.

        A sample that the cache does not move at all is not.
        """
        if result.kind == "uncached":
            return (False,) * len(self.moved)
        if not self.moved:
            return ()
        return tuple(moved <= own < math.inf for moved, own in zip(self.moved, result.psnr, strict=True))

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat mapping a result: what the table, the CSV and the JSON hold.

        PSNR in dB (mean, standard deviation, worst sample, and the worst that is not unstable), ``seconds`` for all
        samples, ``ideal_speed_up`` the ratio of the evaluations. ``nan`` where something does not apply.
        """
        return [self._row(result) for result in self.results]

    def _row(self, result: Result) -> dict[str, Any]:
        reference = result.kind == "uncached"
        unstable = self.unstable(result)
        stable = (
            tuple(value for value, moves in zip(result.psnr, unstable, strict=True) if not moves) if unstable else ()
        )
        row: dict[str, Any] = {
            "label": result.label,
            "kind": result.kind,
            "matches": result.matches or "",
            "policy": result.policy,
            "steps": result.num_steps,
            "nfe": result.mean_nfe,
            "nfe_min": min(result.nfe),
            "nfe_max": max(result.nfe),
            "cache_ratio": result.cache_ratio,
            "work": self.work(result),
            "seconds": result.wall_time,
            "speed_up": self.speed_up(result),
            "ideal_speed_up": self.calls_saved(result),
            "psnr_mean": math.nan if reference else statistics.fmean(result.psnr),
            "psnr_std": math.nan if reference else _std(result.psnr),
            "psnr_worst": math.nan if reference else _worst(result.psnr),
            "unstable": math.nan if reference or not self.moved else sum(unstable),
            "psnr_worst_stable": math.nan if reference or not stable else _worst(stable),
            "ssim_mean": math.nan if reference else statistics.fmean(result.ssim),
            "ssim_worst": math.nan if reference else _worst(result.ssim),
        }
        for name in self.score_names:
            row[name] = result.score(name)
            row[f"{name}_samples"] = sum(math.isfinite(value) for value in result.scores[name])
        return row

    def table(self) -> Table:
        """Return the results as a rich table."""
        table = PlainTable(title=f"{self.name}: {len(self.seeds)} samples", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("sampled with", overflow="fold")
        headings = ("NFE", "reused", "work", "seconds", "speed-up", "of ideal", "PSNR dB", "worst", "unstable", "SSIM")
        for heading in (*headings, *self.score_names):
            table.add_column(heading, justify="right", no_wrap=True)
        for number, (result, row) in enumerate(zip(self.results, self.rows(), strict=True)):
            starts_group = number == 0 or result.kind == "policy"
            following = self.results[number + 1] if number + 1 < len(self.results) else None
            table.add_row(
                Text(result.label if starts_group else f"  {result.label}"),
                *cells(row, self.score_names, timed=not self.busy),
                end_section=following is not None and following.kind == "policy",
            )
        for label, error in self.failures.items():
            table.add_row(Text(f"{label}: FAILED, {error}", style="bold red"))
        if self.busy:
            table.caption = f"~ the machine was busy, times say little: {self.busy}"
            table.caption_justify = "left"
        return table

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return the rows as CSV text with a heading, and write it to ``path`` if one is given.

        A number that does not apply is an empty cell; an infinite PSNR (identical pictures) is ``inf``.

        Raises:
            NeedsError: pandas is not installed.
        """
        check_installed("pandas")
        from pandas import DataFrame

        return _written(DataFrame(self.rows()).to_csv(index=False, lineterminator="\n"), path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pictures and traces as plain JSON values: ``nan`` is None, an infinity ``"inf"``."""
        rows = []
        for result, row in zip(self.results, self.rows(), strict=True):
            rows.append(
                row
                | {
                    "model_calls": result.model_calls,
                    "calls": result.calls,
                    "seconds_all": result.seconds,
                    "per_sample": {
                        "nfe": result.nfe,
                        "psnr": result.psnr,
                        "ssim": result.ssim,
                        "unstable": self.unstable(result),
                        **result.scores,
                    },
                    "timeline": result.timeline(),
                    "changes": [asdict(change) for change in result.changes],
                    "notes": result.notes,
                }
            )
        document = {
            "format": FORMAT,
            "workload": self.name,
            "seeds": self.seeds,
            "verdict": self.verdict(),
            "busy": self.busy,
            "repeat": self.repeat,
            "failures": dict(self.failures),
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
            "rows": rows,
        }
        plain: dict[str, Any] = _as_json_values(document)
        return plain

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON text, and write it to ``path`` if one is given."""
        return _written(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", path)


def cells(row: Mapping[str, Any], scores: tuple[str, ...], timed: bool = True) -> tuple[str, ...]:
    """Return the numbers of one row as a reader sees them, in the order of the table's columns.

    Args:
        row: of `Comparison.rows`.
        scores: names of the workload's.
        timed: whether the wall times can be believed; marked where not, and no ratio is made of them.
    """
    mark = "" if timed else "~"
    spread = "" if _is_nan(row["psnr_std"]) else f" ± {row['psnr_std']:.1f}"
    return (
        f"{row['nfe']:.1f}",
        f"{row['cache_ratio']:.0%}",
        _as_cell(row["work"], ".0%"),
        mark + (f"{row['seconds']:.1f}" if row["seconds"] >= 0.95 else f"{row['seconds']:.2g}"),
        f"{row['speed_up']:.2f}x" if timed else "~",
        f"{row['speed_up'] / row['ideal_speed_up']:.0%}" if timed else "~",
        _as_cell(row["psnr_mean"], ".1f") + spread,
        _as_cell(row["psnr_worst"], ".1f"),
        _as_cell(row["unstable"], "d"),
        _as_cell(row["ssim_mean"], ".4f"),
        *(_as_cell(row[name], ".3f") for name in scores),
    )


def _line(trace: Trace, decision: int) -> str:
    calls: dict[int, list[bool]] = {}
    for record in trace.records:
        calls.setdefault(record.call, []).append(record.evaluated[decision])
    return "".join("#" if all(places) else "+" if any(places) else "." for places in calls.values())


def _as_cell(value: float, form: str) -> str:
    return "-" if _is_nan(value) else format(value, form)


def _std(values: tuple[float, ...]) -> float:
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return math.nan
    return statistics.stdev(values)


def _worst(values: tuple[float, ...]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _as_json_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return text
