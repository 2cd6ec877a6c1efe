"""Evaluating what was reused after all: an audit, of which nothing but the trace learns, and what a policy verifies."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from cachepolicies.base.host import index_on
from cachepolicies.base.units import difference, row_rms
from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.step import Step
from cachepolicies.engine import check
from cachepolicies.engine.call import EvaluationRequest
from cachepolicies.engine.trace import AuditRecord


def verified(step: Step, decision: Decision, output: Tensor) -> Generator[EvaluationRequest, Tensor, Tensor]:
    """Evaluate a reused place after all, for the policy to compare; nothing of it is kept or handed out.

    Args:
        step: what the policy was told.
        decision: as carried out; something is reused.
        output: ``(B, ...)`` what is handed on.

    Returns:
        ``(B, ...)`` what was computed in the rows that are reused, and what is handed on in the others.
    """
    rows = step.run.layout.select(decision.reuse)
    computed = yield from _aside(step, rows)
    if len(rows) == step.run.layout.rows:
        return computed
    return output.detach().index_copy(0, index_on(rows, output.device), computed)


def audited(
    fraction: float, draw: random.Random, step: Step, decision: Decision, output: Tensor, computed: Tensor | None = None
) -> Generator[EvaluationRequest, Tensor, AuditRecord | None]:
    """Evaluate a reused place after all, if the draw says so.

    Args:
        fraction: of the reused calls that is audited.
        draw: of the run.
        step: what the policy was told.
        decision: as carried out.
        output: ``(B, ...)`` what was handed on.
        computed: ``(B, ...)`` what the place makes of what enters it, where it was verified; it is not evaluated again.

    Returns:
        How far the substitute was off, ``None`` where it was not looked at.
    """
    if not fraction or not any(decision.reuse) or draw.random() >= fraction:
        return None
    layout = step.run.layout
    rows = layout.select(decision.reuse)
    true = _part(computed, rows) if computed is not None else (yield from _aside(step, rows))
    errors = [math.nan] * layout.rows
    for row, error in zip(rows, row_rms(difference(true, _part(output, rows).detach())).tolist(), strict=True):
        errors[row] = error
    return AuditRecord(layout.pool_rms(errors), decision.score if decision.score_is_change else None)


def _part(output: Tensor, rows: Sequence[int]) -> Tensor:
    return output if len(rows) == output.shape[0] else output.index_select(0, index_on(rows, output.device))


def _aside(step: Step, rows: Sequence[int]) -> Generator[EvaluationRequest, Tensor, Tensor]:
    """Evaluate some rows without a gradient, and put torch's random state back."""
    devices = [step.x.device] if step.x.device.type == "cuda" else []
    wanted = None if len(rows) == step.run.layout.rows else tuple(rows)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return check.evaluated((yield EvaluationRequest(wanted, audit=True)), len(rows))
