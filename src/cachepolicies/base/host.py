"""Reading tensors on the host, as rarely as possible.

A value on an accelerator costs a synchronisation to read: the host waits until the device has caught up. A value in
host memory costs nothing of the kind. Everything the engine reads goes through this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from cachepolicies.base.errors import InputError
from cachepolicies.base.foreign import writes_so_far

P = ParamSpec("P")
R = TypeVar("R")


def visible(tensor: Tensor) -> bool:
    """Whether the host can look at the tensor without waiting for a device."""
    return tensor.is_cpu


def without_gradient(tensor: Tensor) -> Tensor:
    """Return the tensor cut from what it was computed from; itself where nothing is kept of that."""
    return tensor.detach() if tensor.requires_grad else tensor


def read_together(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Read ``(B,)`` tensors on the host in one synchronisation; lengths may differ."""
    if len(tensors) == 1:
        return [tensors[0].tolist()]
    flat: list[float] = torch.cat([t.to(torch.float64) for t in tensors]).tolist()
    result, start = [], 0
    for tensor in tensors:
        result.append(flat[start : start + len(tensor)])
        start += len(tensor)
    return result


def index_on(rows: Sequence[int], device: torch.device) -> Tensor:
    """Return row numbers as an int64 tensor ``(n,)`` on ``device``, without waiting for it."""
    index = torch.tensor(rows, dtype=torch.int64)
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)


@frozen(eq=False)
class DeclaredTimesteps:
    """The timesteps of a declared run, with the tensor they came from.

    A sampler that walks over that very tensor hands out views of it; such a t is recognised by its place in memory,
    without reading it back from the device.
    """

    values: tuple[float, ...]
    tensor: Tensor | None = None
    version: int = 0

    @classmethod
    def of(cls, timesteps: Any) -> DeclaredTimesteps:
        """Read timesteps given as a sequence or a tensor ``(N,)``.

        Raises:
            InputError: not one-dimensional, empty, or not finite.
        """
        tensor = timesteps if isinstance(timesteps, Tensor) else None
        values = timesteps.tolist() if hasattr(timesteps, "tolist") else list(timesteps)
        if not isinstance(values, list) or not values:
            raise InputError(f"timesteps is {timesteps!r}; give the t of every step, at least one, in a flat sequence")
        for position, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)) or not math.isfinite(value):
                raise InputError(f"timesteps[{position}] is {value!r}; every timestep is a finite number")
        if tensor is not None and (tensor.is_inference() or visible(tensor)):
            tensor = None
        version = writes_so_far(tensor) if tensor is not None else 0
        return cls(tuple(float(v) for v in values), tensor, version)

    def recognise(self, t: Tensor) -> float | None:
        """Return the value of ``t`` if it is a view of one element of the declared tensor, else ``None``."""
        own = self.tensor
        if own is None or writes_so_far(own) != self.version or t.dtype != own.dtype or t.device != own.device:
            return None
        if t.untyped_storage().data_ptr() != own.untyped_storage().data_ptr():
            return None
        if t.numel() > 1 and any(stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
            return None
        place, remainder = divmod(int(t.storage_offset()) - int(own.storage_offset()), own.stride(0) or 1)
        return self.values[place] if remainder == 0 and 0 <= place < len(self.values) else None


def host_time(t: object, batch: int, declared: DeclaredTimesteps | None = None) -> float:
    """Return the noise level of a call as a number.

    Args:
        t: a number, or a tensor of shape ``()``, ``(1,)`` or ``(B,)`` with one value; or ``(B, ...)`` with one for
            every token of a sample, of which the largest counts: the others belong to tokens that are given, not
            sampled.
        batch: rows of the latent.
        declared: the run's declared timesteps, if any.

    Returns:
        t as a float. Reading it costs one synchronisation only for a tensor on an accelerator that is not a view of
        the declared timesteps.

    Raises:
        InputError: t is no number, has another length, differs between rows, or is not finite.
    """
    if isinstance(t, Tensor):
        value = _tensor_time(t, batch, declared)
    elif isinstance(t, (Real, np.generic)) and not isinstance(t, (bool, np.bool_)):
        value = float(t)
    else:
        raise InputError(f"t is {t!r} ({type(t).__name__}); give the noise level as a number or a tensor")
    if not math.isfinite(value):
        raise InputError(f"t is {value}; the noise level has to be finite")
    return value


def _tensor_time(t: Tensor, batch: int, declared: DeclaredTimesteps | None) -> float:
    if t.ndim >= 1 and (t.shape[0] not in (1, batch) or not t.numel()):
        raise InputError(
            f"t has shape {tuple(t.shape)} and x has {batch} rows; t is a number, (1,) or ({batch},), or "
            f"({batch}, ...) with one value a token"
        )
    known = declared.recognise(t) if declared is not None else None
    if known is not None:
        return known
    if t.numel() == 1:
        value: Any = t.tolist()
        while isinstance(value, list):
            value = value[0]
        return float(value)
    if t.ndim > 1:
        t = t.flatten(1).amax(dim=1)
    one_value = t.ndim == 0 or t.shape[0] == 1 or t.stride(0) == 0
    values = (t.reshape(-1)[:1] if one_value else t).tolist()
    first = float(values[0])
    if any(v != first for v in values) and math.isfinite(first):
        raise InputError(f"t differs between the rows of one call: {values}; call once for every noise level")
    return first


def rounding_of(t: object) -> float:
    """Return the relative rounding of a noise level given as ``t``."""
    if isinstance(t, Tensor) and t.dtype.is_floating_point:
        return max(1e-6, torch.finfo(t.dtype).eps)
    return 1e-6


def ordinary_tensors() -> AbstractContextManager[object]:
    """Return a context in which new tensors may be written on later, in and out of inference mode; no gradients."""
    if not torch.is_inference_mode_enabled():
        return nullcontext()
    contexts = ExitStack()
    contexts.enter_context(torch.inference_mode(False))
    contexts.enter_context(torch.no_grad())
    return contexts


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function such that ``torch.compile`` leaves it to Python, and still compiles what it calls."""
    made: Callable[P, R] = torch.compiler.disable(function, recursive=False)  # type: ignore[no-untyped-call]
    return made
