"""`compare`: sample the same seeds uncached and in several cheaper ways, and measure cost and distance in one run."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies._denoiser import CachedDenoiser
from cachepolicies._errors import CacheWarning, RunError, SettingsError
from cachepolicies._policy import CachePolicy
from cachepolicies._trace import Trace
from cachepolicies.comparison._counted import CountedDenoiser
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison.metrics import psnr, ssim
from cachepolicies.comparison.results import Change, Comparison, Kind, Result
from cachepolicies.comparison.workload import Inputs, Workload
from cachepolicies.policies.uniform import Uniform
from cachepolicies.profiles.load import load_profile
from cachepolicies.profiles.schema import Profile
from cachepolicies.sampling import Evaluation, sample
from cachepolicies.schedulers.base import Scheduler

if TYPE_CHECKING:
    from rich.console import Console

UNCACHED = "uncached"


@frozen
class Candidate:
    """One way of sampling to be compared with the uncached one.

    Attributes:
        label: in the table; unique.
        policy: what `CachedDenoiser` takes as policy; ``None`` for the bare model, with fewer steps then.
        num_steps: of the sampler; ``None`` for the workload's own.
        profile: what `CachedDenoiser` takes as profile.
        substitute: what stands in for a skipped evaluation.
        kind: what the report shows it as.
        matches: label of the candidate that a baseline was matched to.
    """

    label: str
    policy: str | CachePolicy | None = None
    num_steps: int | None = None
    profile: Profile | str | Path | None = None
    substitute: str = "hold"
    kind: Kind = field(kw_only=True)
    matches: str | None = None

    @kind.default
    def _kind_of_policy(self) -> Kind:
        return "fewer steps" if self.policy is None else "policy"


def compare(
    workload: Workload,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    *,
    batch_size: int = 32,
    repeats: int = 1,
    baselines: bool = True,
    audited: int = 8,
    shown: int = 8,
    progress: bool = True,
    console: Console | None = None,
) -> Comparison:
    """Sample every seed with the bare model, then with each candidate, and compare.

    Before anything is sampled the pictures and scores of the first batch's noise are made, so that what is wrong with
    them shows at once. Every denoiser is counted by a wrapper around the model, whose count has to agree with the
    trace. Wall times are those of sampling alone, without decoding; the repeats of all candidates are interleaved, and
    the uncached row is timed once more at the end. Reused evaluations are compared with what the model would have
    returned in a separate pass over the first samples, which is not timed.

    Args:
        workload: what to sample and how to judge it.
        candidates: ways of sampling.
        seeds: one a sample. Use others than those of the calibration.
        batch_size: samples evaluated together.
        repeats: how often each is timed; the table has the median.
        baselines: after each policy, also sample with as many evaluations by fewer steps of the same solver, and by
            evenly spaced reuse.
        audited: samples of the pass that compares predicted and true changes; 0 leaves it out.
        shown: samples whose pictures are kept for the report.
        progress: show a progress bar on stderr.
        console: where to show it instead.

    Returns:
        The comparison, the uncached result first.

    Raises:
        SettingsError: no seeds, no candidates, a label twice, or a number out of range; also a wrong policy.
        NeedsError: torchmetrics is not installed, or a policy needs a profile.
        ProfileError: a profile does not fit.
        InputError: the workload's inputs, pictures or scores have the wrong shape.
        RunError: the independent count of the evaluations and the trace disagree.
    """
    check_installed("torchmetrics")
    _check(candidates, seeds, batch_size, repeats, audited, shown)
    reference = Candidate(UNCACHED, kind="uncached")
    planned = [_Sampler.of(workload, candidate) for candidate in (reference, *candidates)]
    batches = [_Batch.of(workload, seeds[start : start + batch_size]) for start in range(0, len(seeds), batch_size)]
    finished: dict[str, _Pass] = {}
    seconds: dict[str, list[float]] = {}
    order: list[_Sampler] = []
    with _progress(progress, console) as tell, torch.no_grad():
        _warm_up(workload, batches[0])
        for sampler in planned:
            order.append(sampler)
            finished[sampler.label] = _sample_all(workload, sampler, batches, tell)
            if baselines and sampler.candidate.kind == "policy":
                taken = {*finished, *(each.label for each in planned)}
                for matched in matched_baselines(workload, sampler.candidate, finished[sampler.label].mean_nfe):
                    clash = matched.label in taken
                    label = f"{matched.label}, {sampler.label}" if clash else matched.label
                    baseline = attrs.evolve(matched, label=label)
                    if baseline.label not in taken:
                        order.append(_Sampler.of(workload, baseline))
                        finished[baseline.label] = _sample_all(workload, order[-1], batches, tell)
        for label, first in finished.items():
            seconds[label] = [first.seconds]
        for _ in range(repeats - 1):
            for sampler in order:
                seconds[sampler.label].append(_sample_all(workload, sampler, batches, tell).seconds)
        # every speed-up divides by this row: time it at the end as well as at the start
        seconds[UNCACHED].append(_sample_all(workload, planned[0], batches, tell).seconds)
        changes = {
            sampler.label: _audit(workload, sampler.candidate, seeds[:audited], batch_size, tell)
            for sampler in order
            if sampler.candidate.kind == "policy" and audited
        }
    uncached = [workload.pictures(samples) for samples in finished[UNCACHED].samples]
    results = [
        _judge(
            workload, sampler, finished[sampler.label], batches, uncached, shown, seconds[sampler.label],
            changes.get(sampler.label, ()),
        )
        for sampler in order
    ]  # fmt: skip
    return Comparison(
        name=workload.name,
        seeds=tuple(seeds),
        results=tuple(results),
        shown=tuple(seeds[:shown]),
        settings=_settings(workload, order, batch_size, repeats, min(audited, len(seeds))),
        provenance=_provenance(batches[0].inputs.noise),
    )


def matched_baselines(workload: Workload, candidate: Candidate, nfe: float) -> tuple[Candidate, ...]:
    """Return the baselines with as many evaluations as a policy took, to the nearest step.

    Args:
        workload: sampled by all of them.
        candidate: the policy.
        nfe: its mean evaluations per sample.

    Returns:
        ``fewer steps (n)``, the same solver without a cache, and ``uniform (n)``, evenly spaced reuse in as many steps
        as the policy had. None if that is every step.
    """
    steps = candidate.num_steps or workload.num_steps
    stages = workload.scheduler.evaluations_per_step
    # the last step of a two-stage sampler takes one evaluation, by the scheduler's contract
    wanted = max(1, round((nfe + stages - 1) / stages))
    if wanted >= steps:
        return ()
    fewer = Candidate(f"fewer steps ({wanted})", None, wanted, kind="fewer steps", matches=candidate.label)
    uniform = Candidate(
        f"uniform ({wanted})",
        Uniform(evaluations=wanted),
        steps,
        substitute=candidate.substitute,
        kind="uniform",
        matches=candidate.label,
    )
    return fewer, uniform


@frozen(eq=False)
class _Batch:
    seeds: tuple[int, ...]
    inputs: Inputs

    @classmethod
    def of(cls, workload: Workload, seeds: Sequence[int]) -> _Batch:
        return cls(tuple(seeds), workload.draw(seeds))


@frozen(eq=False)
class _Sampler:
    """A candidate with its counted denoiser, set up: whatever can be wrong with its settings has been refused."""

    candidate: Candidate
    num_steps: int
    counted: CountedDenoiser
    cached: CachedDenoiser | None

    @classmethod
    def of(cls, workload: Workload, candidate: Candidate, audit: float = 0.0) -> _Sampler:
        counted = CountedDenoiser(workload.denoiser)
        num_steps = workload.num_steps if candidate.num_steps is None else candidate.num_steps
        workload.scheduler.timesteps(num_steps)
        cached = None
        if candidate.policy is not None:
            profile = candidate.profile
            cached = CachedDenoiser(
                counted,
                candidate.policy,
                profile=profile if profile is None or isinstance(profile, Profile) else load_profile(profile),
                scheduler=workload.scheduler,
                substitute=candidate.substitute,
                audit=audit,
            )
        return cls(candidate, num_steps, counted, cached)

    @property
    def label(self) -> str:
        return self.candidate.label

    def sample(self, scheduler: Scheduler, batch: _Batch, callback: Callable[[Evaluation], object]) -> Tensor:
        denoiser: Callable[..., Any] = self.counted if self.cached is None else self.cached
        with warnings.catch_warnings():
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
class _Pass:
    """One pass of a sampler over all batches."""

    samples: tuple[Tensor, ...]
    seconds: float
    nfe: tuple[int, ...]
    calls: int
    model_calls: int
    traces: tuple[Trace, ...]

    @property
    def mean_nfe(self) -> float:
        return sum(self.nfe) / len(self.nfe)


Tell = Callable[[str, int, int], None]
"""Tells the progress bar: what is running, how many evaluations it has done, and how many it will."""


def _sample_all(workload: Workload, sampler: _Sampler, batches: Sequence[_Batch], tell: Tell) -> _Pass:
    samples: list[Tensor] = []
    traces: list[Trace] = []
    nfe: list[int] = []
    seconds, calls, model_calls = 0.0, 0, 0
    stages = workload.scheduler.evaluations_per_step
    expected = (sampler.num_steps * stages - stages + 1) * len(batches)
    for number, batch in enumerate(batches):
        sampler.counted.reset()
        seen = 0

        def count(evaluation: Evaluation, before: int = number * expected // len(batches)) -> None:
            nonlocal seen
            seen += 1
            tell(sampler.label, before + seen, expected)

        device = batch.inputs.noise.device
        _synchronise(device)
        start = time.perf_counter()
        drawn = sampler.sample(workload.scheduler, batch, count)
        _synchronise(device)
        seconds += time.perf_counter() - start
        samples.append(drawn)
        calls = seen
        model_calls += sampler.counted.calls
        if sampler.cached is None:
            nfe.extend([sampler.counted.calls] * len(batch.seeds))
        else:
            traces.append(sampler.cached.trace)
            nfe.extend(sampler.cached.trace.nfe_per_sample)
        _check_count(sampler, seen, len(batch.seeds))
    return _Pass(tuple(samples), seconds, tuple(nfe), calls, model_calls, tuple(traces))


def _check_count(sampler: _Sampler, seen: int, rows: int) -> None:
    """Compare the count by the wrapper around the model with what the trace (or the sampler) says."""
    counted = sampler.counted
    if sampler.cached is None:
        said_calls, said_rows, by = seen, seen * rows, "sampler"
    else:
        trace = sampler.cached.trace
        said_calls, said_rows, by = trace.model_calls, sum(trace.nfe_per_sample), "trace"
    if (counted.calls, counted.rows) != (said_calls, said_rows):
        raise RunError(
            f"{sampler.label}: the model was called {counted.calls} times on {counted.rows} rows, but the {by} counts "
            f"{said_calls} calls on {said_rows} rows; the denoiser must not call itself, and one call is one evaluation"
        )


def _audit(
    workload: Workload, candidate: Candidate, seeds: Sequence[int], batch_size: int, tell: Tell
) -> tuple[Change, ...]:
    """Sample once more and evaluate every reused call after all, to see how far off its substitute was."""
    changes: list[Change] = []
    for start in range(0, len(seeds), batch_size):
        changes += _audit_batch(workload, candidate, seeds[start : start + batch_size], tell)
    return tuple(changes)


def _audit_batch(workload: Workload, candidate: Candidate, seeds: Sequence[int], tell: Tell) -> list[Change]:
    sampler = _Sampler.of(workload, candidate, audit=1.0)
    if sampler.cached is None:
        return []
    steps = len(workload.scheduler.timesteps(sampler.num_steps)) * workload.scheduler.evaluations_per_step
    sampler.sample(
        workload.scheduler,
        _Batch.of(workload, seeds),
        lambda evaluation: tell(f"audit of {candidate.label}", evaluation.index + 1, steps),
    )
    trace = sampler.cached.trace
    if sampler.counted.calls != trace.model_calls + trace.audit_calls:
        raise RunError(
            f"audit of {candidate.label}: the model was called {sampler.counted.calls} times, but the trace counts "
            f"{trace.model_calls} calls and {trace.audit_calls} audits"
        )
    return [
        Change(
            seed=seeds[row],
            call=call,
            t=record.t,
            predicted=math.nan if record.audit.predicted_error is None else record.audit.predicted_error[row],
            true=true,
        )
        for call, record in enumerate(trace.records)
        if record.audit is not None
        for row, true in enumerate(record.audit.true_error)
        if not record.evaluated[row]
    ]


def _judge(
    workload: Workload,
    sampler: _Sampler,
    finished: _Pass,
    batches: Sequence[_Batch],
    uncached: Sequence[Tensor],
    shown: int,
    seconds: Sequence[float],
    changes: tuple[Change, ...],
) -> Result:
    psnrs: list[float] = []
    ssims: list[float] = []
    scores: dict[str, list[float]] = {name: [] for name in workload.scores}
    kept: list[Tensor] = []
    for batch, samples, reference in zip(batches, finished.samples, uncached, strict=True):
        pictures = reference if sampler.label == UNCACHED else workload.pictures(samples)
        psnrs.extend(psnr(pictures, reference).tolist())
        ssims.extend(ssim(pictures, reference).tolist())
        for name, values in scores.items():
            values.extend(workload.score(name, samples, batch.inputs).tolist())
        missing = shown - sum(len(part) for part in kept)
        kept.append(pictures[: max(missing, 0)].clone())
    return Result(
        label=sampler.label,
        kind=sampler.candidate.kind,
        matches=sampler.candidate.matches,
        policy="" if sampler.cached is None else repr(sampler.cached.policy),
        num_steps=sampler.num_steps,
        nfe=finished.nfe,
        calls=finished.calls,
        model_calls=finished.model_calls,
        seconds=tuple(seconds),
        psnr=tuple(psnrs),
        ssim=tuple(ssims),
        scores={name: tuple(values) for name, values in scores.items()},
        pictures=torch.cat(kept),
        traces=finished.traces,
        changes=changes,
        notes=tuple(dict.fromkeys(note for trace in finished.traces for note in trace.notes)),
    )


def _check(
    candidates: Sequence[Candidate], seeds: Sequence[int], batch_size: int, repeats: int, audited: int, shown: int
) -> None:
    for what, value, least in (
        ("batch_size", batch_size, 1),
        ("repeats", repeats, 1),
        ("audited", audited, 0),
        ("shown", shown, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingsError(f"compare: {what} must be an integer >= {least}, got {value!r}")
    if not candidates:
        raise SettingsError("compare: nothing to compare with; give at least one policy, such as 'uniform:every=2'")
    if not seeds:
        raise SettingsError("compare: no seeds; give one for each sample, for example range(32)")
    labels = [UNCACHED, *(candidate.label for candidate in candidates)]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SettingsError(f"compare: the label {twice[0]!r} is used twice; name each candidate differently")


def _warm_up(workload: Workload, batch: _Batch) -> None:
    """Call the model once: threads, kernels and lazy imports are set up before anything is timed.

    Also decode and score once, on noise: a mistake there must not show after all the sampling.
    """
    workload.pictures(batch.inputs.noise)
    for name in workload.scores:
        workload.score(name, batch.inputs.noise, batch.inputs)
    run = workload.scheduler.begin(
        workload.num_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        device=batch.inputs.noise.device,
    )
    x, t = run.model_input(workload.scheduler.initial(batch.inputs.noise, workload.num_steps))
    workload.denoiser(x, t, *batch.inputs.args, **batch.inputs.kwargs)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def _progress(show: bool, console: Console | None) -> Iterator[Tell]:
    if not show:
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(escape(label), total=total)
            bar.update(tasks[label], completed=done)

        yield tell


def _settings(
    workload: Workload, order: Sequence[_Sampler], batch_size: int, repeats: int, audited: int
) -> dict[str, str]:
    denoiser = order[0].counted.model_class_name
    config = ", ".join(f"{name}={value}" for name, value in workload.scheduler.config.items())
    settings = {
        "denoiser": denoiser,
        "scheduler": f"{workload.scheduler.name} ({config})" if config else workload.scheduler.name,
        "steps": str(workload.num_steps),
        "latent shape": " x ".join(map(str, workload.latent_shape)),
        "guidance": "none" if workload.guidance is None else f"{workload.guidance:g}",
        "batch size": str(batch_size),
        "timed": "once" if repeats == 1 else f"{repeats} times, medians",
        "audited samples": str(audited),
    }
    profiles = {s.cached.profile.name: s.cached.profile for s in order if s.cached and s.cached.profile}
    for name, profile in profiles.items():
        settings[f"profile {name}"] = (
            f"{profile.model.class_name}, {profile.scheduler.name}, {profile.num_steps} steps, "
            f"{profile.samples} samples, made {profile.created or 'at an unknown time'}"
        )
    for sampler in order:
        if sampler.cached is not None and sampler.candidate.kind == "policy":
            settings[sampler.label] = f"{sampler.cached.policy!r}, substitute {sampler.cached.substitute!r}"
    return settings


def _provenance(noise: Tensor) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for distribution in ("cachepolicies", "diffusers", "numpy", "torchmetrics"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that is not installed has no metadata
            found[distribution] = metadata.version(distribution)
    device = noise.device
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found["threads"] = str(torch.get_num_threads())
    found["dtype"] = str(noise.dtype).removeprefix("torch.")
    found["made"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return found
