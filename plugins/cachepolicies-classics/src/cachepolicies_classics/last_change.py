"""The stand-in of FasterCache's attention (Lv et al., arXiv 2410.19355): the last change, continued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import instance_of
from torch import Tensor

from cachepolicies import Context, NeedsError, Refresh, SettingsError, Substitute
from cachepolicies.substitutes import Prediction


def _fractions(values: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


@frozen
class LastChange(Substitute):
    """Go on by a part of the last change: ``F1 + w (F1 - F0)`` from the last two computed outputs, F1 the newer one.

    How far apart the steps are does not matter, as in the paper (arXiv 2410.19355, section 3.2): w says how far to go.
    It is the same throughout, or rises with the step. Where there is one output only, it is held. What stands in is
    not among the two outputs of the next. It computes in float32 at least.

    Attributes:
        weight: w; 0 holds.
        rising: two fractions of the run, between which w rises from 0 to ``weight``, and on at that pace to the end of
            the run; 0 before. ``None`` for the same w throughout.
    """

    name: ClassVar[str] = "last-change"

    weight: float = field(default=0.5, validator=instance_of((int, float)))
    rising: tuple[float, ...] | None = field(default=None, converter=_fractions)

    def __attrs_post_init__(self) -> None:
        if not 0.0 <= self.weight <= 10.0:
            raise SettingsError(f"last-change: weight is {self.weight}; give a number from 0 to 10")
        if self.rising is None:
            return
        numbers = [value for value in self.rising if isinstance(value, int | float)]
        if len(numbers) != 2 or len(self.rising) != 2 or not 0.0 <= numbers[0] < numbers[1] <= 1.0:
            raise SettingsError(f"last-change: rising is {self.rising}; give two fractions of the run, the lower first")

    @property
    def history(self) -> int:
        """Two refreshes."""
        return 2

    def weight_at(self, context: Context) -> float:
        """Return w at a step.

        Raises:
            NeedsError: it rises, and the timesteps of the run are not known.
        """
        if self.rising is None:
            return float(self.weight)
        if context.timesteps is None or context.index is None:
            raise NeedsError(
                "substitute 'last-change' with a weight that rises over the run needs its timesteps: declare the run, "
                "`with denoiser.run(timesteps=...)`, or give rising=None"
            )
        steps = len(context.timesteps)
        low, high = (bound * steps for bound in self.rising)
        return max(0.0, self.weight * (context.index - low) / (high - low))

    def predict(self, context: Context, history: Sequence[Refresh]) -> Prediction:
        """Return the newest output and a part of its change, ``(B, ...)``."""
        newest = history[0].output
        if len(history) < 2:
            return Prediction(newest, (0,) * len(newest))
        older = history[1]
        dtype = torch.promote_types(newest.dtype, torch.float32)
        now, before = newest.to(dtype), older.output.to(dtype)
        ahead: Tensor = (now + (now - before) * self.weight_at(context)).to(newest.dtype)
        known = torch.as_tensor(older.filled, device=newest.device).reshape(-1, *[1] * (newest.ndim - 1))
        return Prediction(torch.where(known, ahead, newest), tuple(int(filled) for filled in older.filled))
