"""`compare`: sample the same seeds uncached and in several cheaper ways, and measure cost and distance in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from cachepolicies.base.errors import SettingsError
from cachepolicies.comparison._extras import check_installed
from cachepolicies.comparison._passes import Batch, PreparedCandidate, SamplingPass, audit, sample_all
from cachepolicies.comparison._progress import progress_bar
from cachepolicies.comparison._provenance import provenance_of, settings_of
from cachepolicies.comparison.candidate import UNCACHED, Candidate
from cachepolicies.comparison.load import load, why_unreliable
from cachepolicies.comparison.metrics import psnr, ssim
from cachepolicies.comparison.results import Change, Comparison, Result
from cachepolicies.comparison.stability import moved_psnr
from cachepolicies.comparison.workload import Workload
from cachepolicies.profiles.schema import Profile

if TYPE_CHECKING:
    from rich.console import Console


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
    stability: bool = True,
    progress: bool = True,
    console: Console | None = None,
) -> Comparison:
    """Sample every seed with the bare model, then with each candidate, and compare.

    Before anything is sampled the pictures and scores of the first batch's noise are made, so that what is wrong with
    them shows at once. Every denoiser is counted by a wrapper around the model, whose count has to agree with the
    trace. Wall times are those of sampling alone, without decoding; the repeats of all candidates are interleaved, and
    the uncached row is timed once more at the end. Reused evaluations are compared with what the model would have
    returned in a separate pass over the first samples, which is not timed.

    Another untimed pass samples the bare model with a random change of RMS 1e-3 of its first output. A sample that
    moves so by as much as a cache moves it is *unstable* in that row: near a bifurcation, where its distance says
    little of the cache. These are counted and marked, and left in every figure.

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
        stability: look for unstable samples, by one more uncached pass.
        progress: show a progress bar on stderr.
        console: where to show it instead.

    Returns:
        The comparison, the uncached result first. Where a candidate failed while it was sampled, the others are there
        and ``failures`` says what happened; what is wrong with a setting shows before anything is sampled.

    Raises:
        SettingsError: no seeds, no candidates, a label twice, or a number out of range; also a wrong policy.
        Exception: what the uncached model raised; or, where every candidate failed, what the first of them did.
        NeedsError: torchmetrics is not installed, or a policy needs a profile.
        ProfileError: a profile does not fit.
        InputError: the workload's inputs, pictures or scores have the wrong shape.
        RunError: the independent count of the evaluations and the trace disagree.
    """
    check_installed("torchmetrics")
    _check_arguments(candidates, seeds, batch_size, repeats, audited, shown)
    reference = Candidate(UNCACHED, kind="uncached")
    planned = [PreparedCandidate.of(workload, candidate) for candidate in (reference, *candidates)]
    batches = [Batch.of(workload, seeds[start : start + batch_size]) for start in range(0, len(seeds), batch_size)]
    before = load()
    finished: dict[str, SamplingPass] = {}
    seconds: dict[str, list[float]] = {}
    order: list[PreparedCandidate] = []
    failures: dict[str, Exception] = {}
    with progress_bar(progress, console) as report, torch.no_grad():
        _warm_up(workload, batches[0])
        for sampler in planned:
            try:
                finished[sampler.label] = sample_all(workload, sampler, batches, report)
            except Exception as error:
                if sampler.candidate.kind == "uncached":
                    raise  # nothing can be compared without it
                failures[sampler.label] = error
                continue
            order.append(sampler)
            if baselines and sampler.candidate.baselines and sampler.candidate.kind == "policy":
                taken = {*finished, *(each.label for each in planned)}
                for matched in matched_baselines(workload, sampler.as_it_is, finished[sampler.label].mean_nfe):
                    clash = matched.label in taken
                    label = f"{matched.label}, {sampler.label}" if clash else matched.label
                    baseline = attrs.evolve(matched, label=label)
                    if baseline.label not in taken:
                        prepared = PreparedCandidate.of(workload, baseline)
                        finished[baseline.label] = sample_all(workload, prepared, batches, report)
                        order.append(prepared)
        if len(failures) == len(candidates):
            raise next(iter(failures.values()))
        for label, first in finished.items():
            seconds[label] = [first.seconds]
        for _ in range(repeats - 1):
            for sampler in order:
                seconds[sampler.label].append(sample_all(workload, sampler, batches, report).seconds)
        # every speed-up divides by this row: time it at the end as well as at the start
        seconds[UNCACHED].append(sample_all(workload, planned[0], batches, report).seconds)
        changes = {
            sampler.label: audit(workload, sampler.candidate, seeds[:audited], batch_size, report)
            for sampler in order
            if sampler.candidate.kind == "policy" and audited
        }
        uncached = [workload.pictures(samples) for samples in finished[UNCACHED].samples]
        moved = moved_psnr(workload, batches, uncached, report) if stability else ()
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
        moved=moved,
        busy=why_unreliable(seconds[UNCACHED], before, load()),
        repeat=_repeated(candidates, seeds, batch_size, repeats, baselines),
        failures={label: f"{type(error).__name__}: {error}" for label, error in failures.items()},
        settings=settings_of(workload, order, batch_size, repeats, min(audited, len(seeds))),
        provenance=provenance_of(batches[0].inputs.noise),
    )


def _repeated(
    candidates: Sequence[Candidate], seeds: Sequence[int], batch_size: int, repeats: int, baselines: bool
) -> str:
    """Return the call that compares the same again, with the workload to be put in."""
    steady = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    drawn = f"range({seeds[0]}, {seeds[0] + len(seeds)})" if steady else repr(list(seeds))
    lines = []
    for each in candidates:
        said = [repr(each.label), repr(each.policy)]
        for name in ("num_steps", "profile", "substitute", "site", "limits", "baselines", "budget", "target"):
            value = getattr(each, name)
            if value != getattr(attrs.fields(Candidate), name).default:
                said.append(f"{name}={value.name if isinstance(value, Profile) else value!r}")
        lines.append(f"    Candidate({', '.join(said)}),")
    options = f"batch_size={batch_size}, repeats={repeats}, baselines={baselines}"
    return "\n".join(["compare(workload, [", *lines, f"], {drawn}, {options})"])


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
    site = candidate.site if candidate.site is None or isinstance(candidate.site, str) else candidate.site.name
    place = "" if site in (None, "output") else f" at {site}"
    uniform = Candidate(
        f"uniform ({wanted}){place}",
        "uniform",
        steps,
        budget=wanted,
        profile=candidate.profile,
        substitute=candidate.substitute,
        site=candidate.site,
        kind="uniform",
        matches=candidate.label,
    )
    return fewer, uniform


def _judge(
    workload: Workload,
    sampler: PreparedCandidate,
    finished: SamplingPass,
    batches: Sequence[Batch],
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
        policy="" if sampler.cached is None else sampler.cached.choice.sentence or repr(sampler.cached.settings),
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
        method=sampler.method,
        notes=tuple(dict.fromkeys(note for trace in finished.traces for note in trace.notes)),
    )


def _check_arguments(
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


def _warm_up(workload: Workload, batch: Batch) -> None:
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
