"""Measuring sensitivities during a recorded run, at two further evaluations a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.layout import Layout
from cachepolicies.base.outputs import tensor_of
from cachepolicies.base.units import difference, row_rms
from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.step import Step
from cachepolicies.engine.call import Call
from cachepolicies.engine.invocation import Invocation
from cachepolicies.learning.recorder import MOST_SAMPLES, RunRecorder, recorded_rows

NAMES = ("alpha_x", "alpha_t", "rho")


@frozen(eq=False)
class _Point:
    """Where a branch was evaluated last."""

    x: Tensor
    t: Any
    level: float
    output: Tensor


@frozen(eq=False)
class _Differences:
    """What one branch's output changed by from one step to the next, along x and along t; R rows are recorded.

    Attributes:
        values: ``(3, S)`` alpha_x, alpha_t and rho of the branch alone.
        along_x: ``(R, width)`` projected.
        along_t: ``(R, width)`` projected.
        moved: ``(R,)`` RMS of the latent's change.
        passed: by how much t changed.
    """

    values: NDArray[np.float64]
    along_x: Tensor
    along_t: Tensor
    moved: Tensor
    passed: float


@define(eq=False)
class SensitivityRecorder(RunRecorder):
    """Records a run, and evaluates twice more a step: at the next latent, and at the next noise level.

    ``alpha_x(t_k) = rms(f(x_{k+1}, t_k) - f(x_k, t_k)) / rms(x_{k+1} - x_k)`` and
    ``alpha_t(t_k) = rms(f(x_k, t_{k+1}) - f(x_k, t_k)) / |t_{k+1} - t_k|`` (SenCache, arXiv 2602.24208, eqs. 11 and
    12), and rho, the cosine between the two differences. Of two guidance passes they are those of the guided output,
    where the scale is known; else they are the mean over the branches. The last step has none: where it leads is not
    seen.
    """

    _points: dict[str, _Point] = field(factory=dict, init=False)
    _pending: dict[str, Tensor] = field(factory=dict, init=False)
    _measured: dict[str, list[_Differences]] = field(factory=dict, init=False)
    _layout: Layout | None = field(default=None, init=False)
    _rows: list[int] = field(factory=list, init=False)

    def served(self, step: Step, decision: Decision, output: Tensor) -> None:
        """Keep the output, until the call is over."""
        super().served(step, decision, output)
        self._layout, self._rows = step.run.layout, recorded_rows(step.run)
        self._pending[step.branch] = output.detach().clone()

    def called(self, call: Call, invocation: Invocation) -> int:
        """Evaluate where the step before would have been with the present latent, and with the present level."""
        output, before = self._pending.pop(call.branch, None), self._points.get(call.branch)
        if output is None or self._wrong is not None:
            return super().called(call, invocation)
        x, made = invocation.x.detach().clone(), 0
        if before is not None and before.level != call.t and not torch.equal(before.x, x):
            with torch.no_grad():
                along_x = difference(tensor_of(invocation.run_at(t=before.t)), before.output)
                along_t = difference(tensor_of(invocation.run_at(x=before.x)), before.output)
            moved, passed = row_rms(difference(x, before.x)), abs(call.t - before.level)
            rows = [
                row_rms(along_x) / moved,
                row_rms(along_t) / passed,
                _cosine(along_x, along_t),
            ]
            assert self._outputs is not None
            self._measured.setdefault(call.branch, []).append(
                _Differences(
                    self._by_sample(torch.stack([r.double() for r in rows])),
                    self._outputs(along_x[self._rows]),
                    self._outputs(along_t[self._rows]),
                    moved[self._rows].double().cpu(),
                    passed,
                )
            )
            made = 2
        self._points[call.branch] = _Point(x, _kept(invocation.t), call.t, output)
        super().called(call, invocation)
        return made

    def _by_sample(self, rows: Tensor) -> NDArray[np.float64]:
        """Return ``(3, S)``: the mean over the rows of every sample."""
        assert self._layout is not None
        values: NDArray[np.float64] = rows.cpu().numpy()
        groups = [list(self._layout.rows_of(d)) for d in range(min(self._layout.decisions, MOST_SAMPLES))]
        return np.stack([values[:, group].mean(axis=1) for group in groups], axis=1)

    def _curves(self) -> Mapping[str, NDArray[np.float64]]:
        """Return the curves of the first N - 1 steps."""
        found = self._of_guided_output()
        if found is None:
            found = np.mean([np.stack([each.values for each in made]) for made in self._measured.values()], axis=0)
        return {name: np.ascontiguousarray(found[:, place]) for place, name in enumerate(NAMES)}

    def _of_guided_output(self) -> NDArray[np.float64] | None:
        """Return the curves ``(N - 1, 3, S)`` of what the sampler sees of two passes, ``None`` of any other."""
        measured = list(self._measured.values())
        ways = [[[getattr(each, along) for each in made] for made in measured] for along in ("along_x", "along_t")]
        guided = [self._guided(way) for way in ways]
        if any(made is way for made, way in zip(guided, ways, strict=True)) or self._outputs is None:
            return None
        found = []
        for along_x, along_t, step in zip(guided[0][0], guided[1][0], measured[0], strict=True):
            x, t = along_x.double(), along_t.double()
            size_x, size_t = (each.norm(dim=1) / self._outputs.length**0.5 for each in (x, t))
            moved = step.moved[: len(x)]
            found.append(torch.stack([size_x / moved, size_t / step.passed, _cosine(x, t)]).numpy())
        return np.stack(found)

    def _incomplete(self) -> str | None:
        """Return why the run cannot be learned from, ``None`` if it can."""
        wrong = super()._incomplete()
        if wrong is not None:
            return wrong
        steps = {len(seen) for seen in self._seen.values()}
        if {len(made) + 1 for made in self._measured.values()} != steps:
            return "the latent did not change between two steps"
        finite = all(np.isfinite(each.values).all() for made in self._measured.values() for each in made)
        return None if finite else "a sensitivity is not finite"


def _kept(t: Any) -> Any:
    """Return a noise level that later changes of a tensor leave alone."""
    return t.detach().clone() if isinstance(t, Tensor) else t


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return ``<a, b> / (|a| |b|)`` of every row, in [-1, 1]; 1 where one of them is zero."""
    a, b = (values.reshape(values.shape[0], -1).double() for values in (a, b))
    sizes = a.norm(dim=1) * b.norm(dim=1)
    cosine = (a * b).sum(dim=1) / torch.where(sizes > 0, sizes, 1.0)
    return torch.where(sizes > 0, cosine, 1.0).clamp(-1.0, 1.0)
