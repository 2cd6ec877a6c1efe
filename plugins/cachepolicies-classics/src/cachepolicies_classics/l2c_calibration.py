"""A mask for pairs of steps without training: from the measured error of holding each module, by its work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen

from cachepolicies import CalibrationSamples, SettingsError, as_scheduler
from cachepolicies_classics._pairs import Subject
from cachepolicies_classics.layer_mask import LayerMask


@frozen(eq=False)
class HoldingErrors:
    """What holding each module at the second step of each pair does to what the denoiser returns.

    Attributes:
        errors: for each pair, by place: the mean over the samples of ``|held - full|^2 / |full|^2``, where this module
            alone is held.
        shares: the part of a call's FLOPs that each place does.
        made: the fields of a mask that do not depend on the choice: the model, its run, and what it was measured with.
        samples: how many were measured on.
    """

    errors: tuple[Mapping[str, float], ...] = field(repr=False)
    shares: Mapping[str, float] = field(repr=False)
    made: Mapping[str, Any] = field(repr=False)
    samples: int

    @property
    def least_work(self) -> float:
        """Work of a run in which second steps compute none of the modules, as a part of the uncached one."""
        return 1.0 - sum(self.shares.values()) * len(self.errors) / int(self.made["num_steps"])

    def mask(self, budget: float, weights: Sequence[float] | None = None) -> LayerMask:
        """Return the mask that holds what costs the smallest error for its work, until the budget is met.

        Modules are held in the order of error per work, those of all pairs together. Errors count as if they added up,
        which they do where they are small. They are those of the outputs: what an error does to the sample differs from
        step to step, which ``weights`` may say.

        Args:
            budget: work of the run, as a part of the uncached one's FLOPs; 1 computes everything.
            weights: one for each pair, that its errors count with; all alike if left out.

        Raises:
            SettingsError: the budget is above 1, or less than first steps and everything outside of the modules cost;
                or the weights are not one from 0 for each pair.
        """
        steps = int(self.made["num_steps"])
        if not self.least_work - 1e-9 <= budget <= 1.0:
            raise SettingsError(
                f"budget is {budget!r}; in pairs of steps, this model takes from {self.least_work:.3f} of the work to 1"
            )
        weighed = (1.0,) * len(self.errors) if weights is None else tuple(weights)
        if len(weighed) != len(self.errors) or not all(0.0 <= weight < math.inf for weight in weighed):
            raise SettingsError(f"weights is {weighed}; give {len(self.errors)} numbers from 0, one for each pair")
        ranked = sorted(
            (weighed[number] * error / self.shares[place], number, place)
            for number, row in enumerate(self.errors)
            for place, error in row.items()
        )
        work, computed = 1.0, [list(self.shares) for _ in self.errors]
        for _, number, place in ranked:
            if work <= budget + 1e-9:
                break
            computed[number].remove(place)
            work -= self.shares[place] / steps
        settings = {"budget": budget, "samples": self.samples}
        return LayerMask(**self.made, computed=computed, origin="calibrated errors", settings=settings)


@torch.no_grad()
def holding_errors(
    denoiser: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    *,
    num_steps: int,
    batch_size: int = 8,
) -> HoldingErrors:
    """Measure what holding each module does to the second step of each pair, on uncached runs.

    It takes an uncached run of the samples, and for each pair one evaluation more than there are modules.

    Args:
        denoiser: ``f(x, t, *args, **kwargs)``, in evaluation mode.
        scheduler: whatever `cachepolicies.as_scheduler` takes, of one evaluation a step.
        samples: noise and conditioning.
        num_steps: of the run that the masks are for.
        batch_size: rows of a batch.

    Returns:
        The errors, which a mask can be chosen by for any budget.

    Raises:
        SettingsError: the sampler evaluates twice a step, or there is no pair of steps, or what the modules cost cannot
            be counted.
        NeedsError: no adapter says where attention and MLPs of the network are.
    """
    subject = Subject.recorded(denoiser, as_scheduler(scheduler), samples, num_steps, batch_size)
    errors: list[dict[str, float]] = []
    for found in subject.pairs:
        sums = dict.fromkeys(subject.modules, 0.0)
        for pair in found:
            kept = subject.kept(pair)
            size = pair.output.double().square().flatten(1).sum(1)
            for place in sums:

                def hold(at: str, output: Any, place: str = place, kept: dict[str, Any] = kept) -> Any:
                    return kept[at] if at == place else output

                with subject.through(hold):
                    moved = subject.call(pair.second, pair.samples).double() - pair.output.double()
                sums[place] += float((moved.square().flatten(1).sum(1) / size).sum())
        errors.append({place: total / len(samples) for place, total in sums.items()})
    return HoldingErrors(tuple(errors), subject.shares, subject.made, len(samples))


def calibrated_mask(
    denoiser: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    *,
    num_steps: int,
    budget: float,
    batch_size: int = 8,
) -> LayerMask:
    """Return a mask for pairs of steps from measured errors; nothing is trained, and that is not the published way.

    `holding_errors` and `HoldingErrors.mask` in one.

    Args:
        denoiser: see `holding_errors`.
        scheduler: see `holding_errors`.
        samples: see `holding_errors`.
        num_steps: of the run that the mask is for.
        budget: work of the run, as a part of the uncached one's FLOPs.
        batch_size: rows of a batch.

    Raises:
        SettingsError, NeedsError: see `holding_errors` and `HoldingErrors.mask`.
    """
    measured = holding_errors(denoiser, scheduler, samples, num_steps=num_steps, batch_size=batch_size)
    return measured.mask(budget)
