"""What a learned profile is about, and for which it is never used otherwise."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies.base.models import config_hash, digest_tensor, dtype_name, model_class_name, unwrap
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.profiles.schema import SchedulerInfo

_LOOKED_AT = 64
"""Entries of every weight that are looked at: reading all of a large model's takes a minute."""

_GUIDANCE = ("guidance", "guidance_scale")
"""Attributes by which a wrapper around a network says how strongly it guides."""


@frozen(eq=False)
class Subject:
    """What runs have in common that can be served by one learned profile, but for their timesteps.

    Attributes:
        facts: plain JSON: class, configuration and weights of the network, scheduler and its settings, shape and dtype
            of a sample's latent, guidance, and where the evaluation is cut.
        identified: whether they tell the model from every other; a function without a network inside cannot be told,
            and what is learned of it serves one process.
    """

    facts: Mapping[str, Any]
    identified: bool = True
    digest: str = field(init=False)

    @digest.default
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:24]

    @classmethod
    def of(
        cls,
        model: Callable[..., Any],
        network: nn.Module | None,
        scheduler: Scheduler | None,
        *,
        shape: Sequence[int],
        dtype: torch.dtype,
        copies: int | None,
        site: str,
        guidance: float | None = None,
    ) -> Subject:
        """Return what a run is of.

        Args:
            model: the denoiser as it was given.
            network: the module inside it, ``None`` where there is no telling; then nothing identifies the model.
            scheduler: in use, ``None`` where it is not known.
            shape: of one sample's latent.
            dtype: of the latent.
            copies: how often a sample stands in the batch, ``None`` to be seen.
            site: where the evaluation is cut.
            guidance: scale, where the caller knows it; else what the model says.
        """
        record = None if scheduler is None else SchedulerInfo.of(scheduler)
        return cls(
            {
                "class": model_class_name(model),
                "network": None if network is None else type(unwrap(network)).__name__,
                "config": None if network is None else config_hash(network),
                "weights": None if network is None else fingerprint(network),
                "scheduler": None
                if record is None
                else {"name": record.name, "family": record.family, "config": dict(record.config)},
                "shape": list(shape),
                "dtype": dtype_name(dtype),
                "copies": copies,
                "guidance": _guidance_of(model) if guidance is None else guidance,
                "site": site,
            },
            identified=network is not None,
        )

    def of_run(self, timesteps: Sequence[float]) -> str:
        """Return the name of the profile of runs with these timesteps."""
        rounded = [float(f"{t:.5g}") for t in timesteps]
        digest = hashlib.sha256(json.dumps(rounded).encode()).hexdigest()[:8]
        return f"{self.digest}-{len(timesteps):03d}-{digest}"


def fingerprint(network: nn.Module) -> str:
    """Return a digest of a network's weights: names, dtypes, shapes, and entries of each spread evenly over it.

    Weights that are not loaded (on the device ``meta``, as offloading leaves them) count by name, dtype and shape.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(unwrap(network).state_dict().items()):
        if not isinstance(weight, Tensor):
            continue
        digest.update(f"{name} {dtype_name(weight.dtype)} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta" and weight.numel():
            flat = weight.detach().reshape(-1)
            at = torch.linspace(0, flat.numel() - 1, min(_LOOKED_AT, flat.numel()), dtype=torch.float64).long()
            digest_tensor(digest, flat[at.to(flat.device)])
    return digest.hexdigest()


def _guidance_of(model: object) -> float | None:
    inner = model.func if isinstance(model, functools.partial) else model
    for name in _GUIDANCE:
        value = getattr(inner, name, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None
