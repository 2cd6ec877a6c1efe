"""Bands: what stands in is put together from two substitutes, one for the low frequencies, one for the high ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from attrs import Attribute, evolve, field, frozen
from attrs.validators import ge, instance_of, le
from torch import Tensor

from cachepolicies import Context, InputError, NeedsError, Refresh, SettingsError, Setup, Substitute
from cachepolicies.substitutes import Extrapolation, Hermite, Hold, Prediction, as_substitute

GRID = "token-grid"
"""The signal that says on which grid a stream's tokens lie."""

_TOKENS = 3
"""Dimensions of tokens ``(B, L, C)``."""


def _sizes(values: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


@frozen
class Bands(Substitute):
    """Take the low frequencies of one substitute's stand-in, and the high ones of another's.

    Frequencies are those over the axes on which the numbers lie, by a Fourier transform: the grid of the tokens (time,
    height, width), or the axes of a latent ``(B, C, *axes)``. The low band holds what lies within the fraction
    ``cutoff`` of the way from the mean to the highest frequency of all axes; the high band is the rest, so that the two
    sum to the whole.

    Each substitute sees everything that is remembered, and its band of what it says is taken. Where it weighs what is
    remembered by numbers, as all that extrapolate do, that is the same as splitting what is remembered and letting it
    stand in for its band alone. The same substitute in both bands gives that substitute, unsplit.

    At the denoiser's output the axes are those of the latent, or of its tokens. Inside a network the adapter of its
    class knows the grid (`Adapter.tokens`), or ``grid`` says it; where neither does, it is refused at set-up. ``(B,
    C)`` has no axes: all of it is the low band. The transform is in float32 at least; it and its inverse are all that
    this costs beside the two substitutes.

    Written in a spec, a substitute with more than one setting is quoted:
    ``"bands:low=hold,high='hermite:order=2,scale=0.6',cutoff=0.2"``.

    Attributes:
        low: for the low band: anything that `as_substitute` takes.
        high: for the high band.
        cutoff: where the low band ends, as a fraction: 0 leaves it the mean, 1 everything. The default is about that of
            FasterCache's disc (arXiv 2410.19355), whose radius is a fifth of the shorter side.
        grid: sizes of the token grid, such as ``(height, width)``; ``None`` for what the adapter says.
        known: whether the adapter of the network's class says it; filled in at set-up.
        inside: whether the site is inside a network; filled in at set-up.
        channels: dimension of the channels at the output; filled in at set-up from the adapter.
    """

    name: ClassVar[str] = "bands"

    low: Substitute = field(factory=Hold, converter=as_substitute)
    high: Substitute = field(factory=Hermite, converter=as_substitute)
    cutoff: float = field(default=0.3, validator=[instance_of((int, float)), ge(0.0), le(1.0)])
    grid: tuple[int, ...] | None = field(default=None, converter=_sizes)
    known: bool = field(default=False, repr=False, kw_only=True)
    inside: bool = field(default=False, repr=False, kw_only=True)
    channels: int = field(default=1, repr=False, kw_only=True)

    @grid.validator
    def _check_grid(self, attribute: Attribute[Any], value: tuple[int, ...] | None) -> None:
        if value is not None and (not value or any(type(size) is not int or size < 1 for size in value)):
            raise SettingsError(
                f"bands: grid is {value!r}; give the numbers of tokens along each axis, (height, width) say"
            )

    def __attrs_post_init__(self) -> None:
        for each in self._both:
            if each.corrects:
                raise SettingsError(
                    f"bands: {each!r} corrects evaluations, of which a band is no part; give it correct=0"
                )

    @property
    def _both(self) -> tuple[Substitute, Substitute]:
        return self.low, self.high

    @property
    def history(self) -> int:
        """As many refreshes as the one that wants more."""
        return max(each.history for each in self._both)

    @property
    def recalls(self) -> int:
        """As many values as the one that recalls more."""
        return max(each.recalls for each in self._both)

    @property
    def guard(self) -> float | None:
        """The narrower of the two; it is the whole that is guarded."""
        return min((each.guard for each in self._both if each.guard is not None), default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of both."""
        return tuple(dict.fromkeys(note for each in self._both for note in each.notes))

    @property
    def signals(self) -> frozenset[str]:
        """Those of both, and the grid of the tokens where the adapter knows it."""
        own = frozenset((GRID,)) if self.known and self.grid is None else frozenset[str]()
        return own.union(*(each.signals for each in self._both))

    @property
    def keeps_signals(self) -> frozenset[str]:
        """Those of both."""
        return frozenset[str]().union(*(each.keeps_signals for each in self._both))

    @property
    def wants_input(self) -> bool:
        """Whether one of them does."""
        return any(each.wants_input for each in self._both)

    @property
    def wants_branches(self) -> bool:
        """Whether one of them does."""
        return any(each.wants_branches for each in self._both)

    @property
    def adds_input(self) -> bool:
        """Whether one of them does."""
        return any(each.adds_input for each in self._both)

    def resolve(self, setup: Setup) -> Bands:
        """Return the substitute with both resolved, and with what is known of the axes.

        Raises:
            NeedsError: nothing says on which grid the tokens lie, or one of the two needs something.
            SettingsError: one of the two refuses the set-up.
        """
        site, adapter = setup.site, setup.adapter
        made = evolve(
            self,
            low=self.low.resolve(setup),
            high=self.high.resolve(setup),
            known=site is not None and GRID in site.signals,
            inside=site is not None and bool(site.modules),
            channels=1 if adapter is None else adapter.channels,
        )
        packed = adapter is not None and adapter.unpack is not None and adapter.channels == 1
        if made.grid is None and not made.known and (made.inside or (site is not None and packed)):
            kind = type(setup.model if setup.network is None else setup.network).__name__
            raise NeedsError(
                f"substitute {self.name!r} splits by frequency, and on which grid the tokens of {kind} lie is not "
                "known; give grid=(height, width), (frames, height, width) for a video, or an adapter that has `tokens`"
            )
        return made

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor | Prediction:
        """Return the two bands together, ``(B, ...)``, with the higher order of the two where both have one.

        Raises:
            InputError: what is remembered does not lie on the grid.
        """
        newest = history[0].output
        low, high = (each.predict(context, history[: each.history]) for each in self._both)
        parts = [each.output if isinstance(each, Prediction) else each for each in (low, high)]
        if parts[0] is parts[1]:
            output = parts[0]
        else:
            dtype = torch.promote_types(newest.dtype, torch.float32)
            whole, other = (part.to(dtype) for part in parts)
            shape, axes = self._axes(context, newest)
            # The low band of one and the high band of the other, by one transform of their difference.
            difference = low_band((whole - other).reshape(shape), axes, self.cutoff)
            output = (other + difference.reshape(newest.shape)).to(newest.dtype)
        orders = [self._order(each, made, len(newest)) for each, made in zip(self._both, (low, high), strict=True)]
        if orders[0] is None or orders[1] is None:
            return output
        return Prediction(output, tuple(map(max, zip(*orders, strict=True))))

    def _axes(self, context: Context, output: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape in which the axes of the remembered numbers are dimensions, and which ones."""
        shape, grid = tuple(output.shape), self.grid
        if grid is None and self.known:
            grid = tuple(int(size) for size in context.signals[GRID][0].tolist())
        if grid is not None:
            if len(shape) == _TOKENS and shape[1] % math.prod(grid) == 0:  # a wrapper may double the batch
                return (shape[0], shape[1] // math.prod(grid), *grid, shape[2]), tuple(range(2, 2 + len(grid)))
            if self.grid is not None and shape[2:] == grid:
                return shape, tuple(range(2, len(shape)))
        if len(shape) > _TOKENS and self.grid is None:
            channels = self.channels % len(shape)
            return shape, tuple(axis for axis in range(1, len(shape)) if axis != channels)
        if grid is None and not self.inside:
            return shape, tuple(range(2, len(shape)))
        at = f"place {context.place!r}" if context.place else "the site"
        raise InputError(
            f"substitute {self.name!r} splits by frequency over a grid of {' x '.join(map(str, grid or ()))} tokens, "
            f"and what is remembered at {at} has shape {shape}, which is not (B, tokens, C). It works where a stream "
            "has the tokens of the latent and no others, at site='blocks' of most transformers, or at site='output'"
        )

    @staticmethod
    def _order(substitute: Substitute, made: Tensor | Prediction, rows: int) -> tuple[int, ...] | None:
        if isinstance(made, Prediction):
            return made.order
        return (0,) * rows if isinstance(substitute, Extrapolation) and substitute.order == 0 else None


def low_band(values: Tensor, axes: Sequence[int], cutoff: float) -> Tensor:
    """Return the low frequencies of a real tensor over some of its dimensions.

    A frequency f, in cycles a sample along each axis, is low where ``sqrt(mean (2 f)^2) <= cutoff``, the mean over the
    axes that have more than one sample: 0 is the mean of the values, 1 the highest frequency of all axes.

    Args:
        values: float32 or float64.
        axes: dimensions, in rising order; with none of them all values are low.
        cutoff: from 0 to 1.

    Returns:
        Of the same shape.
    """
    axes = [axis for axis in axes if values.shape[axis] > 1]
    if not axes:
        return values
    square = torch.zeros((), dtype=values.dtype, device=values.device)
    for axis in axes:
        frequencies = torch.fft.rfftfreq if axis == axes[-1] else torch.fft.fftfreq
        along = frequencies(values.shape[axis], dtype=values.dtype, device=values.device)
        square = square + (2 * along).square().reshape(-1, *[1] * (values.ndim - 1 - axis))
    low = square <= len(axes) * cutoff**2 * (1 + torch.finfo(values.dtype).eps * len(axes) * 4)
    spectrum = torch.fft.rfftn(values, dim=axes)
    kept: Tensor = torch.fft.irfftn(spectrum * low, s=[values.shape[axis] for axis in axes], dim=axes)
    return kept
