"""The mask of Learning-to-Cache as it is published: trained, with the model frozen (arXiv 2406.01733)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies import CalibrationSamples, SettingsError, as_scheduler
from cachepolicies_classics._pairs import Pair, Subject, all_pairs, mixed
from cachepolicies_classics.layer_mask import LayerMask


@frozen(eq=False)
class TrainedMask:
    """What a training leads to.

    Attributes:
        mask: the modules whose score is above the threshold are computed.
        scores: ``(pairs, places)`` sigmoid(theta), places as in the mask.
        before: mean loss over all pairs and samples, before the training.
        after: the same with these scores.
    """

    mask: LayerMask
    scores: Tensor = field(repr=False)
    before: float
    after: float


def trained_mask(
    denoiser: Callable[..., Any],
    scheduler: object,
    samples: CalibrationSamples,
    *,
    num_steps: int,
    penalty: float = 1e-6,
    lr: float = 1e-3,
    iterations: int = 10_000,
    threshold: float = 0.1,
    start: float = 0.0,
    batch_size: int = 8,
    seed: int = 0,
) -> TrainedMask:
    """Train which modules the second step of each pair computes; the model itself is not changed.

    For each pair and module there is a number theta, and ``w = sigmoid(theta)``. At the second step every module hands
    on ``w * new + (1 - w) * kept``, kept what it returned at the first. Minimised is, by Adam, one pair of one batch of
    samples at a time,

        mean (mixed - full)^2 + penalty * sum w

    with full what the denoiser returns at the second step. Modules with w above the threshold are computed.

    The authors draw x from noised images of the training set; here it is from uncached runs of the samples, which takes
    no data. How theta begins is not known here, nor how long was trained: give ``start`` and ``iterations``. Adam moves
    theta by about ``lr`` an iteration of its pair, so that from 0.5 to 0.1 takes 2200 of them at 1e-3.

    Args:
        denoiser: ``f(x, t, *args, **kwargs)``, in evaluation mode; differentiable in what its modules return.
        scheduler: whatever `cachepolicies.as_scheduler` takes, of one evaluation a step.
        samples: noise and conditioning; their latents are kept for all steps.
        num_steps: of the run that the mask is for.
        penalty: lambda, of the sum of w; published 1e-6 to 5e-6, 0.1 for U-ViT.
        lr: of Adam.
        iterations: pairs that are trained on, each of one batch.
        threshold: of w, above which a module is computed; published 0.1, or 0.9 at 512 pixels and for U-ViT.
        start: theta of all modules before.
        batch_size: rows of a batch.
        seed: of the order of pairs and batches.

    Returns:
        The mask, with what it is from.

    Raises:
        SettingsError: a number is out of range, or see `calibrated_mask`.
        NeedsError: no adapter says where attention and MLPs of the network are.
    """
    if not (penalty >= 0.0 and lr > 0.0 and iterations >= 1 and 0.0 <= threshold < 1.0):
        raise SettingsError(
            f"trained_mask: penalty={penalty}, lr={lr}, iterations={iterations}, threshold={threshold}; give a penalty "
            "from 0, a rate above 0, an iteration at least, and a threshold from 0 and below 1"
        )
    subject = Subject.recorded(denoiser, as_scheduler(scheduler), samples, num_steps, batch_size)
    places, device = list(subject.modules), samples.noise.device
    thetas = [torch.full((len(places),), float(start), device=device, requires_grad=True) for _ in subject.pairs]
    before = _mean_loss(subject, places, thetas, penalty)
    optimiser = torch.optim.Adam(thetas, lr)
    order, generator = all_pairs(subject), torch.Generator().manual_seed(seed)
    for _ in range(iterations):
        number, pair = order[int(torch.randint(len(order), (1,), generator=generator))]
        optimiser.zero_grad()  # to None: the other pairs stay where they are
        with torch.enable_grad():
            loss = _loss(subject, places, thetas[number], pair, penalty)
            # No gradient of the network's own parameters is asked for, and none is kept.
            (thetas[number].grad,) = torch.autograd.grad(loss, (thetas[number],))
        optimiser.step()
    scores = torch.stack([theta.detach().sigmoid() for theta in thetas]).cpu()
    computed = [[place for place, w in zip(places, row, strict=True) if w > threshold] for row in scores.tolist()]
    settings = {
        "penalty": penalty,
        "lr": lr,
        "iterations": iterations,
        "threshold": threshold,
        "start": start,
        "seed": seed,
        "samples": len(samples),
    }
    mask = LayerMask(**subject.made, computed=computed, origin="trained", settings=settings)
    return TrainedMask(mask, scores, before, _mean_loss(subject, places, thetas, penalty))


def _loss(subject: Subject, places: Sequence[str], theta: Tensor, pair: Pair, penalty: float) -> Tensor:
    """Return the loss at one pair."""
    kept, scores = subject.kept(pair), theta.sigmoid()
    numbers = {place: at for at, place in enumerate(places)}

    def mix(place: str, output: Any) -> Any:
        return mixed(scores[numbers[place]], output, kept[place])

    with subject.through(mix):
        output = subject.call(pair.second, pair.samples)
    return (output - pair.output).square().mean() + penalty * scores.sum()


@torch.no_grad()
def _mean_loss(subject: Subject, places: Sequence[str], thetas: Sequence[Tensor], penalty: float) -> float:
    """Return the mean over all pairs, by their samples."""
    order = all_pairs(subject)
    losses = [
        len(pair.samples) * float(_loss(subject, places, thetas[number], pair, penalty)) for number, pair in order
    ]
    return sum(losses) / sum(len(pair.samples) for _, pair in order)
