"""Which samples are near a bifurcation: a small random change of the first output moves them as far as a cache does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cachepolicies.base.outputs import tensor_of
from cachepolicies.comparison._passes import Batch
from cachepolicies.comparison._progress import ReportProgress
from cachepolicies.comparison.metrics import psnr
from cachepolicies.comparison.workload import Workload
from cachepolicies.schedulers.sample import Evaluation, sample

CHANGE = 1e-3
"""RMS of the random change of the first output, per element."""

_LABEL = "uncached, first output changed"


def moved_psnr(
    workload: Workload, batches: Sequence[Batch], uncached: Sequence[Tensor], report: ReportProgress
) -> tuple[float, ...]:
    """Sample the bare model with its first output changed at random, and return the PSNR of each sample, in dB.

    The change of a sample is drawn from its seed, so that it does not depend on the batch.

    Args:
        workload: what to sample.
        batches: all of them.
        uncached: their uncached pictures.
        report: told of every evaluation.
    """
    stages = workload.scheduler.evaluations_per_step
    expected = (workload.num_steps * stages - stages + 1) * len(batches)
    done = 0

    def count(evaluation: Evaluation) -> None:
        nonlocal done
        done += 1
        report(_LABEL, done, expected)

    found: list[float] = []
    for batch, reference in zip(batches, uncached, strict=True):
        moved = sample(
            _changed(workload.denoiser, batch.seeds),
            workload.scheduler,
            batch.inputs.noise,
            *batch.inputs.args,
            num_steps=workload.num_steps,
            generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
            callback=count,
            **batch.inputs.kwargs,
        )
        found.extend(psnr(workload.pictures(moved), reference).tolist())
    return tuple(found)


def _changed(denoiser: Callable[..., Any], seeds: Sequence[int]) -> Callable[..., Tensor]:
    """Return the denoiser with a random change added to what it returns first."""
    first = True

    def denoise(x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal first
        output = tensor_of(denoiser(x, t, *args, **kwargs))
        if not first:
            return output
        first = False
        rows = [torch.randn(output.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return output + CHANGE * torch.stack(rows).to(output)

    return denoise
