"""What threshold policies look at along a trajectory: sizes of the outputs, changes of the filtered latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cachepolicies.adapters.find import network_of, registered_adapter
from cachepolicies.base.errors import InputError
from cachepolicies.base.signature import Signature
from cachepolicies.base.units import difference
from cachepolicies.calibration.samples import CalibrationSamples
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.signal import SignalInput
from cachepolicies.policies.seacache import SeaCache, filtered
from cachepolicies.schedulers.noise_share import NoiseShare
from cachepolicies.sites.signals import outside_signals

_SIGNAL = "spatial-latent"
_SMALLEST = 1e-16


def mean_magnitudes(outputs: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return the mean magnitude of every output, ``(N, B)`` float64."""
    return np.stack([_mean_of_rows(y) for y in outputs])


def mean_distances(values: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return the mean magnitude of the difference of every two of N tensors ``(B, ...)``: ``(N, N, B)`` float32."""
    count = len(values)
    table = np.zeros((count, count, values[0].shape[0]), dtype=np.float32)
    for r in range(count - 1):
        for k in range(r + 1, count):
            table[r, k] = table[k, r] = _mean_of_rows(difference(values[k], values[r]))
    return table


def filtered_changes(
    model: Callable[..., Any],
    scheduler: Scheduler,
    samples: CalibrationSamples,
    latents: Sequence[Tensor],
    levels: Sequence[Tensor],
) -> NDArray[np.float64] | None:
    """Return the relative L1 change from step to step of the latent through SeaCache's filter, ``(N - 1, B)`` float64.

    ``None`` where the axes of the latent cannot be told.

    Args:
        model: the denoiser.
        scheduler: whose noise levels these are.
        samples: the batch, with the arguments of the calls.
        latents: N tensors ``(B, ...)``, as the denoiser is called with.
        levels: N tensors ``(B,)``.
    """
    network = network_of(model)
    adapter = None if network is None else registered_adapter(network)
    signal = outside_signals(Setup(scheduler=scheduler, model=model, network=network, adapter=adapter)).get(_SIGNAL)
    if signal is None:
        return None
    noise = NoiseShare.of(scheduler, "timestep" if adapter is None else adapter.clock)
    signature, power = Signature.of(model), SeaCache().power
    seen: list[Tensor] = []
    for x, t in zip(latents, levels, strict=True):
        level = float(t.reshape(-1)[0])
        arguments = signature.by_name((x, t, *samples.args), samples.kwargs)
        try:
            latent = signal.read(SignalInput(x, level, network, call=arguments))
        except InputError:  # tokens whose grid nothing says: SeaCache itself would refuse them, in these words
            return None
        seen.append(filtered(latent, noise.at(level), power).flatten(1).double())
    changes = [
        ((now - before).abs().mean(dim=1) / (before.abs().mean(dim=1) + _SMALLEST)).cpu().numpy()
        for before, now in pairwise(seen)
    ]
    return np.stack(changes) if changes else None


def _mean_of_rows(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.abs().flatten(1).double().mean(dim=1).cpu().numpy()
    return found
