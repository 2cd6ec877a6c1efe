"""Comparisons made up for what is said of them: nothing is sampled."""

from __future__ import annotations

import math
from typing import Any

import torch

from cachepolicies.comparison import Comparison, Result
from cachepolicies.engine.trace import CallRecord, Trace
from cachepolicies.policies.uniform import UniformReason

STEPS = 50


def result(
    label: str,
    kind: Any = "policy",
    nfe: float = STEPS,
    psnr: Any = math.inf,
    matches: str | None = None,
    seconds: Any = (10.0,),
    trace: tuple[str, str] | None = None,
    samples: int = 4,
    frames: int = 1,
) -> Result:
    """Return a result of ``samples`` samples, all alike unless ``psnr`` has one number each."""
    each = psnr if isinstance(psnr, tuple) else (psnr,) * samples
    calls = round(nfe) if kind == "fewer steps" else STEPS
    traces = () if kind in ("uncached", "fewer steps") else (_trace(trace or ("rule", "hold"), nfe, samples),)
    return Result(
        label=label,
        kind=kind,
        matches=matches,
        policy="",
        num_steps=calls,
        nfe=(nfe,) * samples,
        calls=calls,
        model_calls=calls,
        seconds=seconds,
        psnr=each,
        ssim=(1.0,) * samples,
        scores={},
        pictures=torch.rand(samples, frames, 12, 12, generator=torch.Generator().manual_seed(len(label))),
        traces=traces,
    )


def comparison(*results: Result, **changed: Any) -> Comparison:
    """Return a comparison of these results with an uncached one in front."""
    frames = results[0].pictures.shape[1]
    reference = result("uncached", "uncached", samples=len(results[0].psnr), frames=frames, seconds=(20.0, 20.0))
    seeds = tuple(range(len(results[0].psnr)))
    options: dict[str, Any] = {
        "name": "made up",
        "seeds": seeds,
        "results": (reference, *results),
        "shown": seeds,
        "settings": {"steps": str(STEPS), "scheduler": "flow-euler"},
        "provenance": {"torch": "9.9"},
    }
    return Comparison(**(options | changed))


def _trace(names: tuple[str, str], nfe: float, samples: int) -> Trace:
    """Return a trace whose work is that of ``nfe`` evaluations, the decisions spread evenly."""
    reason = next(iter(UniformReason))
    records = []
    for call in range(STEPS):
        model_called = int((call + 1) * nfe / STEPS) > int(call * nfe / STEPS)
        records.append(
            CallRecord(
                t=1.0 - call / STEPS,
                branch="",
                evaluated=(model_called,) * samples,
                reason=(reason,) * samples,
                score=None,
                tolerance=None,
                led=True,
                index=call,
                model_called=model_called,
                call=call,
                saved=1 - nfe / STEPS,
            )
        )
    return Trace(*names, records)
