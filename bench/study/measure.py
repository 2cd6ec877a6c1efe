"""Sampling rows into the CSV file of their configuration, one by one, so that an interruption costs one row."""

from __future__ import annotations

import csv
import fcntl
import math
import os
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import attrs
import torch
from attrs import frozen
from configurations import Configuration
from memo import Memo, together
from rows import Row, candidate, rows
from safetensors.torch import load_file, save_file

from cachepolicies import CacheWarning, CalibrationSamples, Profile, calibrate, load_profile, save_profile
from cachepolicies.comparison import Candidate, Workload
from cachepolicies.comparison._passes import Batch, PreparedCandidate, sample_all
from cachepolicies.comparison.metrics import psnr, ssim
from cachepolicies.policies import Schedule

COLUMNS = ("configuration", "method", "substitute", "budget", "seed", "nfe", "psnr", "ssim", "setting")
CALIBRATION_SEEDS = range(1000, 1008)
UNREACHABLE = "no setting within one evaluation of the budget"
WEIGHTS = 10
"""Steps of which the weight is measured, about; the rest is interpolated."""


@frozen
class Study:
    """Where the study writes and what it samples.

    Attributes:
        folder: of the CSV files and profiles.
        seeds: one a sample; others than the calibration's.
        deadline: time after which no row is begun, as `time.time` gives it; ``None`` for none.
    """

    folder: Path
    seeds: tuple[int, ...]
    deadline: float | None = None

    def file(self, configuration: Configuration) -> Path:
        """Return the CSV file of a configuration."""
        return self.folder / f"{configuration.slug}.csv"

    def over(self) -> bool:
        """Return whether the time is up."""
        return self.deadline is not None and time.time() > self.deadline


@frozen
class Job:
    """Some rows of a configuration, sampled one after the other by one process."""

    configuration: Configuration
    budget: int
    first: bool

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.configuration.name}, {self.budget} evaluations"


def prepare(study: Study, configuration: Configuration) -> str:
    """Calibrate a configuration and sample it uncached, unless that is done."""
    torch.set_num_threads(1)
    if study.over():
        return f"{configuration.name}: not prepared, the time is up"
    workload = configuration.workload()
    profile_of(configuration, workload, study.folder)
    uncached(study, configuration, workload)
    return f"{configuration.name}: prepared"


def profile_of(configuration: Configuration, workload: Workload, folder: Path) -> Profile:
    """Return the profile of a configuration: the shipped one, or one calibrated here and kept."""
    if (configuration.sampler, configuration.steps) == ("euler", 50):
        return load_profile(configuration.model)
    path = folder / "profiles" / f"{configuration.slug}.json"
    if path.exists():
        return load_profile(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = workload.draw(CALIBRATION_SEEDS)
    profile = calibrate(
        workload.denoiser,
        workload.scheduler,
        CalibrationSamples(noise=inputs.noise, args=inputs.args, seeds=CALIBRATION_SEEDS),
        num_steps=configuration.steps,
        weights=max(1, configuration.steps // WEIGHTS),
        guidance=workload.guidance,
        name=configuration.slug,
        progress=False,
    )
    save_profile(profile, path)
    return profile


def uncached(study: Study, configuration: Configuration, workload: Workload) -> torch.Tensor:
    """Return the samples without a cache, which everything is compared with; kept, as they serve many jobs."""
    path = study.folder / "uncached" / f"{configuration.slug}-{len(study.seeds)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            samples, _ = _sampled(workload, Candidate("uncached", kind="uncached"), _batches(workload, study.seeds))
            save_file({"samples": samples}, path)
    return load_file(path)["samples"]


def measure(study: Study, job: Job) -> str:
    """Sample the rows of a job that the file does not hold yet, until the time is up; return what was done."""
    torch.set_num_threads(1)
    configuration = job.configuration
    path = study.file(configuration)
    done = finished(path, len(study.seeds))
    missing = [row for row in rows(job.budget, configuration.steps, job.first) if row not in done]
    if not missing or study.over():
        return f"{job.name}: {len(missing)} rows left"
    workload, memo = _remembering(configuration)
    remembering = attrs.evolve(workload, denoiser=memo)
    asked, computed = memo.asked, memo.computed
    profile = profile_of(configuration, workload, study.folder)
    whole, batches = [Batch.of(workload, study.seeds)], _batches(workload, study.seeds)
    reference = workload.pictures(uncached(study, configuration, workload))
    sampled = unreachable = 0
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for row in missing:
            if study.over():
                break
            chosen = candidate(row, profile, workload.scheduler)
            if chosen is None:
                unreachable += 1
                _append(path, configuration, row, [None], [(math.nan, math.nan, math.nan)], UNREACHABLE)
                continue
            if row.at_blocks:
                latents, nfe = _sampled(workload, chosen, batches)
            else:
                latents, nfe = _sampled(remembering, chosen, whole)
            pictures = workload.pictures(latents)
            values = zip(nfe, psnr(pictures, reference).tolist(), ssim(pictures, reference).tolist(), strict=True)
            _append(path, configuration, row, study.seeds, list(values), _described(chosen))
            sampled += 1
    asked, computed = memo.asked - asked, memo.computed - computed
    known = 1 - computed / asked if asked else 0.0
    left = len(missing) - sampled - unreachable
    return (
        f"{job.name}: {sampled} rows, {unreachable} without a setting for the budget, {left} left; "
        f"{known:.0%} of the evaluations at the output were known"
    )


def finished(path: Path, samples: int) -> set[Row]:
    """Return the rows that a file holds in full, and those that have no setting for their budget."""
    if not path.exists():
        return set()
    seeds: dict[Row, set[str]] = {}
    unreachable = set()
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            row = Row(line["method"], line["substitute"], int(line["budget"]))
            if line["setting"] == UNREACHABLE:
                unreachable.add(row)
            else:
                seeds.setdefault(row, set()).add(line["seed"])
    return unreachable | {row for row, seen in seeds.items() if len(seen) >= samples}


@cache
def _remembering(configuration: Configuration) -> tuple[Workload, Memo]:
    """Return the workload and the memory of its denoiser, which serve all jobs of a configuration in this process."""
    workload = configuration.workload()
    return workload, Memo(workload.denoiser)


def _batches(workload: Workload, seeds: Sequence[int]) -> list[Batch]:
    width = together(Batch.of(workload, seeds[:1]).inputs.noise)
    return [Batch.of(workload, seeds[start : start + width]) for start in range(0, len(seeds), width)]


def _sampled(workload: Workload, chosen: Candidate, batches: Sequence[Batch]) -> tuple[torch.Tensor, tuple[float, ...]]:
    result = sample_all(workload, PreparedCandidate.of(workload, chosen), batches, lambda label, done, total: None)
    return torch.cat(result.samples), result.nfe


def _append(
    path: Path,
    configuration: Configuration,
    row: Row,
    seeds: Sequence[int | None],
    values: Sequence[tuple[float, float, float]],
    setting: str,
) -> None:
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the other process may be at another budget of the same configuration
        file.seek(0, os.SEEK_END)
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for seed, (nfe, decibels, similarity) in zip(seeds, values, strict=True):  # the setting once: it is long
            writer.writerow(
                [
                    configuration.name, row.method, row.substitute, row.budget, seed, nfe,
                    f"{decibels:.4f}", f"{similarity:.6f}", setting if seed == seeds[0] else "",
                ]
            )  # fmt: skip


def _described(chosen: Candidate) -> str:
    policy = chosen.policy
    made = policy.read() if isinstance(policy, Schedule) else None
    return repr(policy) if made is None else f"refreshes {list(made.refreshes)}"
