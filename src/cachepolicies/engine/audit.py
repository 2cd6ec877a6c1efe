"""Auditing: a reused call is evaluated after all, now and then, and nothing but the trace learns of it."""

from __future__ import annotations

import math
import random
from collections.abc import Generator

import torch
from torch import Tensor

from cachepolicies.base.host import index_on
from cachepolicies.base.units import difference, row_rms
from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.step import Step
from cachepolicies.engine import check
from cachepolicies.engine.call import EvaluationRequest
from cachepolicies.engine.trace import AuditRecord


def audited(
    fraction: float, draw: random.Random, step: Step, decision: Decision, output: Tensor
) -> Generator[EvaluationRequest, Tensor, AuditRecord | None]:
    """Evaluate a reused place after all, if the draw says so.

    Args:
        fraction: of the reused calls that is audited.
        draw: of the run.
        step: what the policy was told.
        decision: as carried out.
        output: ``(B, ...)`` what was handed on.

    Returns:
        How far the substitute was off, ``None`` where it was not looked at.
    """
    if not fraction or not any(decision.reuse) or draw.random() >= fraction:
        return None
    layout = step.run.layout
    rows = layout.select(decision.reuse)
    everyone = len(rows) == layout.rows
    devices = [step.x.device] if step.x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        true = check.evaluated((yield EvaluationRequest(None if everyone else tuple(rows), audit=True)), len(rows))
    held = output if everyone else output.index_select(0, index_on(rows, output.device))
    errors = [math.nan] * layout.rows
    for row, error in zip(rows, row_rms(difference(true, held.detach())).tolist(), strict=True):
        errors[row] = error
    return AuditRecord(layout.pool_rms(errors), decision.score if decision.score_is_change else None)
