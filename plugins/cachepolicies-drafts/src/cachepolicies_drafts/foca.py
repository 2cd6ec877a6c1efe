"""The forecast of FoCa (Zheng et al., arXiv 2508.16211): a two-step predictor on its own values, then a corrector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from attrs import field, frozen
from attrs.validators import ge, gt, in_, instance_of, optional
from torch import Tensor

from cachepolicies import Context, NeedsError, Refresh, Substitute

Slope = Literal["difference", "step"]


@frozen
class FoCa(Substitute):
    """Forecast by BDF2 from the last two values, own forecasts among them; correct it from the last evaluation.

    With F_k the newest value, computed or forecast, F_{k-1} the one before, and F the last evaluation, n steps ago, the
    predictor is ``2 F_k - F_{k-1}``: it goes on by ``d = F_k - F_{k-1}``. The corrector, of Heun's kind, starts from F
    and goes n steps by the mean of two slopes, ``F + n/2 (D + d)``, D being that of the evaluations. What comes of it
    is the next F_k.

    D is the last evaluation less the one before, as cache-dit computes it. Where s > 1 steps lie between these two,
    that is s times the slope of a step, and at a fixed interval forecasts overshoot; ``slope="step"`` divides by s, and
    then values on a line are continued exactly. Beyond the paper's formulas, cache-dit damps after 3 steps: n is
    replaced by ``3 * 3 / n``, which is ``horizon=3`` here; without it, what is wrong with the slope d grows from the
    fourth step on. As the extrapolations of cachepolicies this one is guarded, which neither is: it holds the newest
    evaluation where the size of a forecast leaves the range of the evaluated ones; ``guard=None`` for no guard.

    Steps are counted by the noise levels that were visited, so a second evaluation at one level makes none. Where there
    is one evaluation only, or both were at one level, the last is held. The arithmetic is in float32 at least. It costs
    the memory of two outputs and two values a branch and place.

    Attributes:
        horizon: how many steps are forecast without damping; ``None`` for any number, as in the paper.
        slope: ``"difference"``, as published; or ``"step"``, D by the steps between the evaluations.
        guard: how far the RMS of a forecast may leave the range of the row's evaluated outputs, a factor >= 1, before
            the newest output is held instead; ``None`` for no limit.
    """

    name: ClassVar[str] = "foca"

    horizon: float | None = field(
        default=cast("float | None", 3.0), validator=optional([instance_of((int, float)), gt(0.0)])
    )
    slope: Slope = field(default="difference", validator=in_(("difference", "step")))
    guard: float | None = field(
        default=cast("float | None", 2.0), validator=optional([instance_of((int, float)), ge(1.0)])
    )

    @property
    def history(self) -> int:
        """Two refreshes: the last evaluation, and the slope there."""
        return 2

    @property
    def recalls(self) -> int:
        """Two values: the slope now."""
        return 2

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return the corrected forecast ``(B, ...)``; the newest output in rows with one evaluation.

        Raises:
            NeedsError: what has flowed on is not known, so that nothing can be recalled.
        """
        newest = history[0].output
        if not context.passed:
            raise NeedsError(f"substitute {self.name!r} goes on from its own forecasts, and the context has none")
        if len(history) < 2 or len(context.passed) < 2:
            return newest
        steps, spans = self._steps(context.visited, history[0], history[1])
        dtype = torch.promote_types(newest.dtype, torch.float32)
        full, before, last, earlier = (
            value.to(dtype) for value in (newest, history[1].output, context.passed[0], context.passed[1])
        )
        local = last - earlier
        slope = full - before
        if self.slope == "step":
            slope = slope / _column(spans, full)
        forecast = full + _column([step / 2 for step in steps], full) * (slope + local)
        known = torch.tensor([step > 0 for step in steps], device=newest.device)
        return torch.where(known.reshape(-1, *[1] * (newest.ndim - 1)), forecast, full).to(newest.dtype)

    def _steps(self, visited: Sequence[float], last: Refresh, before: Refresh) -> tuple[list[float], list[float]]:
        """Return for every row how many steps it is forecast, damped, and how many lie between its evaluations.

        0 and 1 where it has no two of them, at different levels.
        """
        steps, spans = [], []
        for row, filled in enumerate(before.filled):
            there = filled and last.filled[row]
            at = visited.index(last.t[row]) if there else 0
            if not there or before.t[row] not in visited[at + 1 :]:
                steps.append(0.0)
                spans.append(1.0)
                continue
            count = float(at + 1)
            steps.append(count if self.horizon is None or count <= self.horizon else self.horizon**2 / count)
            spans.append(float(visited.index(before.t[row], at + 1) - at))
        return steps, spans


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Return one number a row, to be multiplied with a tensor ``(B, ...)``."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))
