"""The stand-in of CFG-Cache (Lv et al., FasterCache, arXiv 2410.19355): one guidance branch, made from another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from attrs import evolve, field, frozen
from attrs.validators import ge, in_, instance_of, le, optional
from torch import Tensor

from cachepolicies import Context, InputError, NeedsError, Refresh, RunError, Setup, Substitute

Unpack: TypeAlias = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""Returns a latent as ``(B, C, *axes)``, from it and the arguments of the call: an adapter's ``unpack``."""

_RADIUS = 5
"""The low band is a disc around frequency 0; the shorter side of the grid is so many times its radius."""


@frozen
class FromBranch(Substitute):
    """Another branch's output at this t, plus how far this branch was from it when both were evaluated last.

    With c the other branch's output now, and d = u - c the difference at the last step where both ran, ``u = c + low(d)
    f_low + high(d) f_high`` (arXiv 2410.19355, equations 9 to 11). The bands are those of the Fourier transform over
    height and width of the latent's grid; the low one is a disc whose radius is a fifth of the shorter side, rounded
    down. A factor is multiplied on once for *every* step since then, so that factors compound.

    Outputs are taken for ``(B, C, ..., H, W)``, unless the adapter of the network's class says how its latent is packed
    into tokens, or ordered otherwise; the output lies as the latent does. Tokens beside the grid, of reference images
    say, are not scaled.

    It looks at what the other branch returned, which has to be called first, and keeps it with each refresh: one output
    more for each other branch. It computes in float32 at least.

    Attributes:
        low: factor of the low band, at steps before ``low_until``; 1 from there on.
        high: factor of the high band, at steps from ``high_from`` on; 1 before.
        low_until: fraction of the run.
        high_from: fraction of the run.
        source: name of the other branch; ``None`` where there is one only.
        axes: how many of the last axes the grid has: 2 for ``(B, C, ..., H, W)``, 1 for sound ``(B, C, L)``.
        unpack: of the adapter; filled in at set-up.
    """

    name: ClassVar[str] = "from-branch"

    low: float = field(default=1.1, validator=[instance_of((int, float)), ge(0.0), le(10.0)])
    high: float = field(default=1.1, validator=[instance_of((int, float)), ge(0.0), le(10.0)])
    low_until: float = field(default=0.8, validator=[instance_of((int, float)), ge(0.0), le(1.0)])
    high_from: float = field(default=0.6, validator=[instance_of((int, float)), ge(0.0), le(1.0)])
    source: str | None = field(default=None, validator=optional(instance_of(str)))
    axes: int = field(default=2, validator=in_((1, 2)))
    unpack: Unpack | None = field(default=None, repr=False)

    @property
    def history(self) -> int:
        """One refresh."""
        return 1

    @property
    def wants_branches(self) -> bool:
        """Yes."""
        return True

    @property
    def keeps_branches(self) -> bool:
        """Yes: the difference is that of one step."""
        return True

    def resolve(self, setup: Setup) -> FromBranch:
        """Return the substitute that knows the network's adapter."""
        return self if setup.adapter is None else evolve(self, unpack=setup.adapter.unpack)

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return the other branch's output and the scaled difference, ``(B, ...)``.

        Raises:
            RunError: no other branch was called before at this t, or at the last evaluation of this one; or several
                were, and none is named.
            InputError: the outputs do not lie on a grid, or cannot be told how they do.
            NeedsError: a factor is not 1, and the timesteps of the run are not known.
        """
        kept = history[0]
        name = self._other(context)
        if name not in kept.branches:
            raise RunError(
                f"substitute 'from-branch': when branch {context.branch!r} was evaluated last, branch {name!r} had not "
                "been called at that t; both have to be called at every step, the one that is left out after the other"
            )
        newest = kept.output
        dtype = torch.promote_types(newest.dtype, torch.float32)
        now, then = context.branches[name].to(dtype), kept.branches[name].to(dtype)
        factors = [
            self._factors(context, t) if filled else (1.0, 1.0) for t, filled in zip(kept.t, kept.filled, strict=True)
        ]
        return (now + self._scaled(newest.to(dtype) - then, factors, context)).to(newest.dtype)

    def _other(self, context: Context) -> str:
        """Return the name of the branch that the stand-in is made from."""
        there = context.branches
        if self.source is not None and self.source in there:
            return self.source
        if self.source is None and len(there) == 1:
            return next(iter(there))
        found = ", ".join(repr(name) for name in there) or "none"
        raise RunError(
            f"substitute 'from-branch' makes branch {context.branch!r} from "
            f"{'another' if self.source is None else repr(self.source)} that was called before it at the same t, and "
            f"at t={context.t:g} there is {found}. Call the one that is left out last; or leave out the other, "
            'branches="..." of the policy; or name the one to make it from, source="..."'
        )

    def _factors(self, context: Context, t: float) -> tuple[float, float]:
        """Return what the two bands of a difference are multiplied by, if it was taken at t."""
        if self.low == self.high == 1.0:
            return 1.0, 1.0
        since = context.index_of(t)
        if since is None or context.index is None or context.timesteps is None:
            raise NeedsError(
                "substitute 'from-branch' scales by the step, and needs the timesteps of the run: declare it, "
                "`with denoiser.run(timesteps=...)`, or give low=1, high=1"
            )
        steps, skipped = len(context.timesteps), range(since + 1, context.index + 1)
        low_until, high_from = round(self.low_until * steps), round(self.high_from * steps)
        return (
            self.low ** sum(step < low_until for step in skipped),
            self.high ** sum(step >= high_from for step in skipped),
        )

    def _scaled(self, difference: Tensor, factors: Sequence[tuple[float, float]], context: Context) -> Tensor:
        """Return a difference ``(B, ...)`` with its bands multiplied by the factors of each row."""
        low, high = difference.new_tensor(factors).unbind(1)
        shape = (-1, *[1] * (difference.ndim - 1))
        if all(one == other for one, other in factors):
            return difference * low.reshape(shape)
        if self.unpack is None:
            return self._scaled_on_grid(difference, low, high)
        scaled = self._scaled_on_grid(self.unpack(difference, context.arguments), low, high)
        numbers = torch.arange(difference[0].numel(), device=difference.device).reshape(1, *difference.shape[1:])
        places = self.unpack(numbers.expand(difference.shape), context.arguments)[0].flatten()
        return difference.flatten(1).index_copy(1, places, scaled.flatten(1)).reshape(difference.shape)

    def _scaled_on_grid(self, difference: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return a difference ``(B, C, *axes)`` with its bands multiplied by the factors ``(B,)``."""
        if difference.ndim < self.axes + (2 if self.axes > 1 else 1):
            raise InputError(
                f"substitute 'from-branch' takes outputs (B, C, ..., H, W), got {tuple(difference.shape)}, and no "
                "adapter says how they lie on a grid; give equal factors for both bands, low=1, high=1, or for sound "
                "(B, C, L) axes=1"
            )
        shape, axes = (-1, *[1] * (difference.ndim - 1)), tuple(range(-self.axes, 0))
        sides = difference.shape[-self.axes :]
        spectrum = torch.fft.rfftn(difference, dim=axes)
        gain = torch.where(_low_band(sides, difference.device), low.reshape(shape), high.reshape(shape))
        scaled: Tensor = torch.fft.irfftn(spectrum * gain, s=sides, dim=axes)
        return scaled


def _low_band(sides: Sequence[int], device: torch.device) -> Tensor:
    """Return which frequencies of a real transform over a grid lie in the low band."""
    radius = min(sides) // _RADIUS
    squares = torch.zeros((), device=device)
    for axis, side in enumerate(sides):
        frequencies = torch.fft.rfftfreq if axis == len(sides) - 1 else torch.fft.fftfreq
        numbers = frequencies(side, 1.0 / side, device=device)
        squares = squares + numbers.square().reshape(-1, *[1] * (len(sides) - 1 - axis))
    return squares <= radius**2 + 0.5  # whole numbers, but for rounding
