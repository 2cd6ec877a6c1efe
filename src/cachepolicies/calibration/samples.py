"""What a calibration runs on: noise, conditioning, data and seeds, one row per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from cachepolicies.base.converters import as_dict, as_tuple, integers
from cachepolicies.base.errors import InputError, SettingsError


@frozen(eq=False)
class CalibrationSamples:
    """The samples of a calibration; 8 suffice (SenCache, section 5).

    Attributes:
        noise: ``(S, ...)`` standard normal noise, floating point.
        args: further positional arguments of the denoiser, after x and t.
        kwargs: its keyword arguments. In both, every tensor whose first dimension is S is sliced with the batch, also
            inside tuples, lists and dicts; everything else is passed as it is.
        data: ``(S, ...)`` clean latents, needed for ``trajectory="noised"``.
        seeds: one per sample; they seed the noise that stochastic schedulers draw, and are kept in the profile.

    Raises:
        InputError: noise or data is not floating point, has no samples, or their shapes differ.
        SettingsError: the number of seeds is not S.
    """

    noise: Tensor
    args: tuple[Any, ...] = field(default=(), converter=as_tuple)
    kwargs: Mapping[str, Any] = field(factory=dict, converter=as_dict)
    data: Tensor | None = None
    seeds: tuple[int, ...] = field(default=(), converter=integers)

    def __attrs_post_init__(self) -> None:
        for what, tensor in (("noise", self.noise), ("data", self.data)):
            if tensor is None:
                continue
            if not tensor.is_floating_point():
                raise InputError(f"calibration {what} has dtype {tensor.dtype}; give floating-point latents")
            if tensor.ndim < 2 or tensor.shape.numel() == 0:
                raise InputError(
                    f"calibration {what} has shape {tuple(tensor.shape)}; "
                    "expected (samples, ...) with at least one sample"
                )
        if self.data is not None and self.data.shape != self.noise.shape:
            raise InputError(
                f"calibration data has shape {tuple(self.data.shape)}, noise {tuple(self.noise.shape)}; they must agree"
            )
        if self.seeds and len(self.seeds) != len(self):
            raise SettingsError(f"{len(self.seeds)} seeds for {len(self)} calibration samples; give one each, or none")

    def __len__(self) -> int:
        """S, the number of samples."""
        return self.noise.shape[0]

    @classmethod
    def from_seeds(
        cls,
        seeds: Sequence[int],
        latent_shape: Sequence[int],
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        data: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> CalibrationSamples:
        """Draw the noise of each sample from its own seed, on the CPU, so that it is the same on every device.

        Args:
            seeds: one per sample.
            latent_shape: of one sample, without the batch.
            args: see the class.
            kwargs: see the class.
            data: see the class.
            dtype: of the noise, which is drawn in float32.
            device: of the noise.
        """
        if not seeds:
            raise SettingsError("no seeds given; give one per calibration sample, for example range(8)")
        rows = [torch.randn(*latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        noise = torch.stack(rows).to(device=device, dtype=dtype)
        return cls(noise=noise, args=tuple(args), kwargs=kwargs or {}, data=data, seeds=tuple(seeds))

    def rows(self, start: int, stop: int) -> CalibrationSamples:
        """Return the samples ``start`` to ``stop - 1``."""
        total = len(self)
        return CalibrationSamples(
            noise=self.noise[start:stop],
            args=tuple(_slice(item, start, stop, total) for item in self.args),
            kwargs={name: _slice(item, start, stop, total) for name, item in self.kwargs.items()},
            data=None if self.data is None else self.data[start:stop],
            seeds=self.seeds[start:stop],
        )


def _slice(item: Any, start: int, stop: int, total: int) -> Any:
    if isinstance(item, Tensor):
        return item[start:stop] if item.ndim > 0 and item.shape[0] == total else item
    if isinstance(item, tuple):
        parts = [_slice(part, start, stop, total) for part in item]
        make = getattr(item, "_make", None)  # a namedtuple takes its items one by one
        return tuple(parts) if make is None else make(parts)
    if isinstance(item, list):
        return [_slice(part, start, stop, total) for part in item]
    if isinstance(item, dict):
        return {name: _slice(part, start, stop, total) for name, part in item.items()}
    return item
