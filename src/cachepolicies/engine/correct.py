"""Correcting an evaluation for the stand-ins before it, as the substitute says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cachepolicies.base.errors import PolicyError
from cachepolicies.base.host import index_on
from cachepolicies.base.units import row_rms
from cachepolicies.contracts.substitute import Context, Refresh, Substitute


def corrected(
    substitute: Substitute,
    context: Context,
    history: Sequence[Refresh],
    clipped: Tensor | None,
    fresh: Tensor,
    rows: Sequence[int] | None,
) -> Tensor:
    """Return an evaluation with the substitute's correction added.

    A row stays as it was evaluated where the guard held an output back since its last refresh, since the substitute
    does not know what was handed out then, and where the correction is not finite.

    Args:
        substitute: it ``corrects``.
        context: the present.
        history: with the new evaluation, newest first.
        clipped: ``(B,)`` bool, rows that the guard held back before this evaluation; ``None`` for none.
        fresh: ``(len(rows), ...)`` the evaluation, or ``(B, ...)`` where ``rows`` is ``None``.
        rows: that were evaluated, ``None`` for all.

    Returns:
        As ``fresh``; it is not changed.

    Raises:
        PolicyError: the correction has another shape than the evaluation of the whole batch.
    """
    added = substitute.correction(context, history)
    if added is None:
        return fresh
    batch = history[0].output.shape
    if not isinstance(added, Tensor) or added.shape != batch or not added.is_floating_point():
        found = f"{tuple(added.shape)} {added.dtype}" if isinstance(added, Tensor) else repr(added)
        raise PolicyError(
            f"the correction of substitute {substitute.name!r} is {found}; expected a floating-point tensor "
            f"{tuple(batch)}"
        )
    sound = torch.isfinite(row_rms(added))
    if clipped is not None:
        sound = sound & ~clipped
    if rows is not None:
        index = index_on(rows, fresh.device)
        added, sound = added.index_select(0, index), sound.index_select(0, index)
    sound = sound.reshape(-1, *[1] * (fresh.ndim - 1))
    return torch.where(sound, (fresh + added).to(fresh.dtype), fresh)
