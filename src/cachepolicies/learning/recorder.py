"""Recording an uncached run: projections of its latents and outputs, and the distances between every two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.base.projection import Projection
from cachepolicies.base.timesteps import part_of
from cachepolicies.contracts.policy import Decision
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.engine.call import Call
from cachepolicies.engine.invocation import Invocation
from cachepolicies.engine.watch import Watch

MOST_SAMPLES = 8
"""Samples of a batch that are recorded; the others are like them."""

_PASSES = 2
"""Of classifier-free guidance."""

FEWEST_STEPS = 5
"""Runs shorter than this have nothing to gain from reuse, and are not learned from."""


@frozen(eq=False)
class RecordedRun:
    """What was seen of one run that came to its end.

    Attributes:
        info: of the run.
        timesteps: ``(N,)`` where it was evaluated, in order.
        branches: names of the guidance branches, in the order of their first calls.
        displacement: ``(N, N, S)`` float64, RMS of x_k - x_r.
        change: ``(N, N, S)`` float64, RMS of f(x_k, t_k) - f(x_r, t_r); of several branches, the root of the mean
            square.
        curves: quantities at the first M steps by name, ``(M, S)`` float64.
    """

    info: RunInfo
    timesteps: tuple[float, ...]
    branches: tuple[str, ...]
    displacement: NDArray[np.float64] = field(repr=False)
    change: NDArray[np.float64] = field(repr=False)
    curves: Mapping[str, NDArray[np.float64]] = field(factory=dict, repr=False)


@frozen(eq=False)
class _Seen:
    """One evaluation of one branch, projected."""

    t: float
    x: Tensor
    output: Tensor


@define(eq=False)
class RunRecorder(Watch):
    """Keeps a projection of every latent and output of a run that is evaluated in full.

    Memory is 64 kB for each of them and each sample, up to eight samples. Nothing is recorded of a run in which a
    branch is called twice at a noise level, in which a step lacks a branch, or in which anything was reused: there
    would be no telling what belongs together. What is wrong is kept as a sentence.

    Attributes:
        done: told of the run when it came to its end whole.
        refused: told why nothing was recorded, where nothing was.
        part: whether the denoiser may be called in a part of a declared run only, as two of a pipeline are; otherwise a
            run that stopped on the way is not learned from.
        guidance: scale of the guidance, where it is known: what the sampler sees of two passes is
            ``uncond + guidance (cond - uncond)``, and so are the outputs whose distances are kept.
    """

    done: Callable[[RecordedRun], object]
    refused: Callable[[str], object]
    part: bool = field(default=False, kw_only=True)
    guidance: float | None = field(default=None, kw_only=True)
    _seen: dict[str, list[_Seen]] = field(factory=dict, init=False)
    _latents: Projection | None = field(default=None, init=False)
    _outputs: Projection | None = field(default=None, init=False)
    _info: RunInfo | None = field(default=None, init=False)
    _wrong: str | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)
    _last: bool = field(default=False, init=False)

    def served(self, step: Step, decision: Decision, output: Tensor) -> None:
        """Keep the projections of an evaluation."""
        if self._wrong is not None:
            return
        self._info = step.run
        seen = self._seen.setdefault(step.branch, [])
        if any(decision.reuse):
            self._wrong = f"something was reused at t={step.t:g}"
        elif seen and seen[-1].t == step.t:
            self._wrong = (
                f"the denoiser was called twice at t={step.t:g} in branch {step.branch!r}: the sampler evaluates twice "
                "a step, or latents are sampled side by side"
            )
        elif seen and not step.t < seen[-1].t:
            self._wrong = f"t rises from {seen[-1].t:g} to {step.t:g}"
        else:
            rows = recorded_rows(step.run)
            if self._latents is None or self._outputs is None:
                self._latents, self._outputs = (Projection(values[0].numel()) for values in (step.x, output))
            seen.append(_Seen(step.t, self._latents(step.x[rows]), self._outputs(output[rows])))
            self._last = step.run.timesteps is not None and step.t == step.run.timesteps[-1]

    def called(self, call: Call, invocation: Invocation) -> int:
        """End a declared run at once when its last step is complete: nothing more comes, and no other may begin."""
        if self._last and len({len(seen) for seen in self._seen.values()}) == 1:
            self.finished()
        return 0

    def finished(self) -> None:
        """Hand on what was recorded, or why nothing was; once."""
        if self._over:
            return
        self._over = True
        if self._info is None or self._latents is None or self._outputs is None:
            return
        wrong = self._wrong or self._incomplete()
        if wrong is not None:
            self.refused(wrong)
            return
        (first, *_) = self._seen.values()
        outputs = self._guided([[each.output for each in seen] for seen in self._seen.values()])
        latents = [[each.x for each in seen] for seen in self._seen.values()]
        samples = min(self._info.decisions, MOST_SAMPLES)
        run = RecordedRun(
            self._info,
            tuple(each.t for each in first),
            tuple(self._seen),
            tables_of(latents, samples, self._latents.length),
            tables_of(outputs, samples, self._outputs.length),
            self._curves(),
        )
        self.done(self.recorded(run))

    def _guided(self, outputs: list[list[Tensor]]) -> list[list[Tensor]]:
        """Return the outputs of two passes as the sampler combines them; as they are where there are others.

        Pipelines call the conditional pass first where the two are separate, and put it last where they are one batch.
        """
        scale = self.guidance
        if scale is None or scale <= 1.0 or self._info is None:
            return outputs
        if len(outputs) == _PASSES:
            cond, uncond = outputs
            if next(iter(self._seen)) == "uncond":
                cond, uncond = uncond, cond
            return [[u + scale * (c - u) for c, u in zip(cond, uncond, strict=True)]]
        layout = self._info.layout
        if len(outputs) == 1 and layout.copies == _PASSES and (layout.decisions > 1 or layout.rows == _PASSES):
            halves = [each.chunk(_PASSES) for each in outputs[0]]
            return [[u + scale * (c - u) for u, c in halves]]
        return outputs

    def recorded(self, run: RecordedRun) -> RecordedRun:
        """Return the run as it is handed on; another recorder may add to it."""
        return run

    def _curves(self) -> Mapping[str, NDArray[np.float64]]:
        """Return what else was measured; nothing."""
        return {}

    def _incomplete(self) -> str | None:
        """Return why the run cannot be learned from, ``None`` if it can."""
        levels = [tuple(each.t for each in seen) for seen in self._seen.values()]
        if any(other != levels[0] for other in levels[1:]):
            return f"the branches {', '.join(map(repr, self._seen))} are not called at the same steps"
        if len(levels[0]) < FEWEST_STEPS:
            return f"it has {len(levels[0])} steps only"
        declared = None if self._info is None else self._info.timesteps
        whole = declared is None or self.part or len(declared) == len(levels[0])
        if declared is not None and (not whole or part_of(levels[0], declared) is None):
            return (
                f"it was declared with {len(declared)} steps, and {len(levels[0])} of them, or others, were evaluated"
            )
        finite = all(torch.isfinite(each.output).all() for seen in self._seen.values() for each in seen)
        return None if finite else "an output is not finite"


def tables_of(steps: Sequence[Sequence[Tensor]], samples: int, entries: int) -> NDArray[np.float64]:
    """Return the RMS distance between every two steps of every sample.

    Args:
        steps: by branch, N tensors ``(R, width)`` each; R is a multiple of the samples, and the rows of sample s are
            s, s + S, ...
        samples: S.
        entries: of a row before it was projected.

    Returns:
        ``(N, N, S)`` float64, the root of the mean square over a sample's rows and the branches; zero on the diagonal.
    """
    joined = torch.stack([torch.stack(list(branch)) for branch in steps], dim=1).double()  # (N, branches, R, width)
    count, branches, rows, width = joined.shape
    copies = rows // samples
    by_sample = (
        joined.reshape(count, branches, copies, samples, width).permute(3, 0, 1, 2, 4).reshape(samples, count, -1)
    )
    distances = torch.cdist(by_sample, by_sample, compute_mode="donot_use_mm_for_euclid_dist")
    found: NDArray[np.float64] = (distances / (entries * branches * copies) ** 0.5).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(found)


def recorded_rows(run: RunInfo) -> list[int]:
    """Return the rows of the first samples, copy by copy."""
    chosen = range(min(run.decisions, MOST_SAMPLES))
    if run.decisions == 1:  # the whole batch decides as one, and is one sample
        return list(range(min(run.layout.rows, MOST_SAMPLES)))
    by_sample = [run.layout.rows_of(d) for d in chosen]
    return [rows[copy] for copy in range(len(by_sample[0])) for rows in by_sample]
