"""One pass of a way of sampling over all batches: timed and counted, or audited."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import CacheWarning, RunError
from cachepolicies.comparison._counted import CountedDenoiser, modules_inside
from cachepolicies.comparison._progress import ReportProgress
from cachepolicies.comparison.candidate import Candidate, ForeignDenoiser
from cachepolicies.comparison.results import Change
from cachepolicies.comparison.workload import Inputs, Workload
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.engine.call import WHOLE
from cachepolicies.engine.trace import Trace
from cachepolicies.profiles.load import load_profile
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.sample import Evaluation, sample
from cachepolicies.wrapper.denoiser import CachedDenoiser


@frozen(eq=False)
class Batch:
    seeds: tuple[int, ...]
    inputs: Inputs

    @classmethod
    def of(cls, workload: Workload, seeds: Sequence[int]) -> Batch:
        return cls(tuple(seeds), workload.draw(seeds))


@frozen(eq=False)
class PreparedCandidate:
    """A candidate with its counted denoiser, set up: whatever can be wrong with its settings has been refused."""

    candidate: Candidate
    num_steps: int
    counted: CountedDenoiser
    cached: CachedDenoiser | None
    foreign: ForeignDenoiser | None = None

    @classmethod
    def of(cls, workload: Workload, candidate: Candidate, audit: float = 0.0) -> PreparedCandidate:
        counted = CountedDenoiser(workload.denoiser)
        num_steps = workload.num_steps if candidate.num_steps is None else candidate.num_steps
        workload.scheduler.timesteps(num_steps)
        cached = None
        if candidate.foreign is not None:
            return cls(candidate, num_steps, counted, None, candidate.foreign(workload))
        if candidate.policy is not None:
            profile = candidate.profile
            cached = CachedDenoiser(
                counted,
                candidate.policy,
                profile=profile if profile is None or isinstance(profile, Profile) else load_profile(profile),
                scheduler=workload.scheduler,
                substitute=candidate.substitute,
                site=candidate.site,
                limits=candidate.limits,
                budget=candidate.budget,
                target=candidate.target,
                audit=audit,
                learn=False,  # what is compared must not depend on what ran before
            )
        return cls(candidate, num_steps, counted, cached)

    @property
    def label(self) -> str:
        return self.candidate.label

    @property
    def method(self) -> str:
        """Policy, substitute and site by name, without settings."""
        if self.foreign is not None:
            return self.label.partition(" (")[0]
        if self.cached is None or self.candidate.policy is None:
            return self.candidate.kind
        policy = "best" if self.candidate.policy == "best" else self.cached.policy.name
        substitute = self.cached.substitute
        corrected = ", corrected" if substitute.corrects else ""
        place = "" if self.cached.site == "output" else f" at {self.cached.site}"
        return f"{policy}, {substitute.name}{corrected}{place}"

    @property
    def as_it_is(self) -> Candidate:
        """The candidate with the site that it has, and with ``hold`` where that is what it took."""
        if self.cached is None:
            return self.candidate
        site = self.cached.site if self.candidate.site is None else self.candidate.site
        substitute = self.candidate.substitute
        if substitute is None and self.cached.substitute.name == "hold":
            substitute = "hold"
        return attrs.evolve(self.candidate, site=site, substitute=substitute)

    def sample(self, scheduler: Scheduler, batch: Batch, callback: Callable[[Evaluation], object]) -> Tensor:
        denoiser: Callable[..., Any] = self.foreign or self.cached or self.counted
        site = None if self.cached is None else self.cached.resolved_site
        with warnings.catch_warnings(), self.counted.counting(site):
            warnings.simplefilter("ignore", CacheWarning)  # the traces keep them, and the report shows them
            return sample(
                denoiser,
                scheduler,
                batch.inputs.noise,
                *batch.inputs.args,
                num_steps=self.num_steps,
                generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
                callback=callback,
                **batch.inputs.kwargs,
            )


@frozen(eq=False)
class SamplingPass:
    """One pass of a sampler over all batches."""

    samples: tuple[Tensor, ...]
    seconds: float
    nfe: tuple[float, ...]
    calls: int
    model_calls: int
    traces: tuple[Trace, ...]

    @property
    def mean_nfe(self) -> float:
        return sum(self.nfe) / len(self.nfe)


def sample_all(
    workload: Workload, sampler: PreparedCandidate, batches: Sequence[Batch], report: ReportProgress
) -> SamplingPass:
    samples: list[Tensor] = []
    traces: list[Trace] = []
    nfe: list[float] = []
    seconds, calls, model_calls = 0.0, 0, 0
    stages = workload.scheduler.evaluations_per_step
    expected = (sampler.num_steps * stages - stages + 1) * len(batches)
    for number, batch in enumerate(batches):
        sampler.counted.reset()
        seen = 0

        def count(evaluation: Evaluation, before: int = number * expected // len(batches)) -> None:
            nonlocal seen
            seen += 1
            report(sampler.label, before + seen, expected)

        device = batch.inputs.noise.device
        _synchronise(device)
        start = time.perf_counter()
        drawn = sampler.sample(workload.scheduler, batch, count)
        _synchronise(device)
        seconds += time.perf_counter() - start
        samples.append(drawn)
        calls = seen
        model_calls += sampler.counted.calls
        if sampler.foreign is not None:
            nfe.extend([sampler.foreign.evaluations] * len(batch.seeds))
            continue
        if sampler.cached is None:
            nfe.extend([sampler.counted.calls] * len(batch.seeds))
        else:
            trace = sampler.cached.trace
            traces.append(trace)
            each = trace.nfe_per_sample
            nfe.extend(each * (len(batch.seeds) // len(each)))  # one decision for all of them, or one each
        _check_count(sampler, seen, len(batch.seeds))
    return SamplingPass(tuple(samples), seconds, tuple(nfe), calls, model_calls, tuple(traces))


def _check_count(sampler: PreparedCandidate, seen: int, rows: int) -> None:
    """Compare the count by the wrapper around the model with what the trace (or the sampler) says."""
    counted = sampler.counted
    said_rows: float  # a part of a row where a site has several places
    if sampler.cached is None:
        said, said_rows, by = seen, seen * rows, "sampler"
    else:
        records = sampler.cached.trace.records
        said, by = sum(record.model_called + record.verified for record in records), "trace"
        # What is verified is computed in the rows that are reused, so that every row is computed.
        said_rows = sum(rows if r.verified else sum(r.evaluated) * rows // len(r.evaluated) for r in records)
    if (counted.evaluations, counted.rows) != (said, said_rows):
        raise RunError(
            f"{sampler.label}: the model was evaluated {counted.evaluations} times on {counted.rows} rows, but the "
            f"{by} counts {said} evaluations on {said_rows} rows; the denoiser must not call itself, and one call is "
            "one evaluation"
        )


def audit(
    workload: Workload, candidate: Candidate, seeds: Sequence[int], batch_size: int, report: ReportProgress
) -> tuple[Change, ...]:
    """Sample once more and evaluate every reused call after all, to see how far off its substitute was."""
    changes: list[Change] = []
    for start in range(0, len(seeds), batch_size):
        changes += _audit_batch(workload, candidate, seeds[start : start + batch_size], report)
    return tuple(changes)


def _audit_batch(
    workload: Workload, candidate: Candidate, seeds: Sequence[int], report: ReportProgress
) -> list[Change]:
    sampler = PreparedCandidate.of(workload, candidate, audit=1.0)
    if sampler.cached is None:
        return []
    steps = len(workload.scheduler.timesteps(sampler.num_steps)) * workload.scheduler.evaluations_per_step
    sampler.sample(
        workload.scheduler,
        Batch.of(workload, seeds),
        lambda evaluation: report(f"audit of {candidate.label}", evaluation.index + 1, steps),
    )
    trace = sampler.cached.trace
    evaluated, counted = sum(record.model_called for record in trace.records), sampler.counted.evaluations
    aside = sum(r.place == WHOLE and (r.audit is not None or r.verified) for r in trace.records)
    inside = modules_inside(sampler.cached.resolved_site)
    if counted != evaluated + trace.audit_calls + trace.verified_calls + aside * inside:
        raise RunError(
            f"audit of {candidate.label}: the model was evaluated {counted} times, but the trace counts {evaluated} "
            f"evaluations, {trace.verified_calls} that verify and {trace.audit_calls} audits"
        )
    return [
        Change(
            seed=seeds[row],
            call=record.call,
            t=record.t,
            predicted=math.nan if record.audit.predicted_error is None else record.audit.predicted_error[row],
            true=true,
        )
        for record in trace.records
        if record.audit is not None
        for row, true in enumerate(record.audit.true_error)
        if not record.evaluated[row]
    ]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
