"""What is handed out in the place of an evaluation: the substitute's prediction, checked and within its guard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import define
from torch import Tensor

from cachepolicies.base.errors import PolicyError
from cachepolicies.base.host import visible
from cachepolicies.base.units import row_rms
from cachepolicies.contracts.substitute import Context, Prediction, Substitute, order_of
from cachepolicies.engine.store import Sizes, Store


@define(eq=False)
class StandIn:
    """What a place is answered with, and what the trace has to know of it.

    Attributes:
        output: ``(B, ...)``.
        order: order of the substitute in every row; ``None`` where nothing was substituted or it has none.
        clipped: ``(B,)`` bool, rows in which the guard replaced the extrapolation; ``None`` where none was.
    """

    output: Tensor
    order: tuple[int, ...] | None = None
    clipped: Tensor | None = None


def stand_in(substitute: Substitute, context: Context, store: Store, *, read_only: bool = False) -> StandIn:
    """Return the substitute's prediction for all rows, in memory that is not the store's unless it is only read.

    Raises:
        PolicyError: the prediction has another shape or dtype than what it stands in for.
    """
    history = store.history
    predicted = substitute.predict(context, history)
    output = predicted.output if isinstance(predicted, Prediction) else predicted
    newest = history[0].output
    if not isinstance(output, Tensor) or (output.shape, output.dtype) != (newest.shape, newest.dtype):
        found = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else repr(output)
        raise PolicyError(
            f"substitute {substitute.name!r} predicted {found}; what it stands in for is "
            f"{tuple(newest.shape)} {newest.dtype}"
        )
    order = _orders(substitute, predicted, newest.shape[0])
    clipped = None
    # An extrapolation of order 0 is a remembered output itself: there is nothing to guard.
    if order is None or any(order):
        output, clipped = clip(output, newest, store.sizes, substitute.guard)
    if read_only:
        return StandIn(output, order, clipped)
    if output is newest:
        return StandIn(output.clone(), order, clipped)
    owned = {
        kept.untyped_storage().data_ptr()
        for refresh in history
        for kept in (refresh.output, refresh.input)
        if kept is not None
    }
    owned |= {
        seen.untyped_storage().data_ptr()
        for seen in (context.x, context.input, *context.branches.values(), *context.passed, *context.entered)
        if seen is not None
    }
    # the sampler may change what it gets in place
    return StandIn(output.clone() if output.untyped_storage().data_ptr() in owned else output, order, clipped)


def clip(predicted: Tensor, newest: Tensor, sizes: Sizes | None, factor: float | None) -> tuple[Tensor, Tensor | None]:
    """Hold the newest output in the rows whose stand-in has left the range seen so far, or is not finite.

    Args:
        predicted: ``(B, ...)`` the stand-in.
        newest: ``(B, ...)`` the newest output of every row.
        sizes: range of the RMS of the evaluated outputs; needed with a factor.
        factor: how far the RMS may leave that range; ``None`` to look at finiteness only.

    Returns:
        ``(B, ...)``, and ``(B,)`` bool which rows were replaced; ``None`` instead where the host sees that none was.
        On an accelerator nothing waits for the device.
    """
    size = row_rms(predicted)
    if factor is None or sizes is None:
        sound = torch.isfinite(size)
    else:
        # Comparisons with nan are false: a row without a finite size never passes.
        sound = (size >= sizes.low / factor) & (size <= sizes.high * factor)
    if visible(sound) and all(sound.tolist()):
        return predicted, None
    return torch.where(sound.reshape(-1, *[1] * (predicted.ndim - 1)), predicted, newest), ~sound


def _orders(substitute: Substitute, predicted: Tensor | Prediction, rows: int) -> tuple[int, ...] | None:
    if not isinstance(predicted, Prediction):
        return (0,) * rows if order_of(substitute) == 0 else None
    order: Sequence[int] = predicted.order
    if not isinstance(order, tuple) or len(order) != rows:
        raise PolicyError(
            f"substitute {substitute.name!r} gave order {order!r}; it is a tuple of {rows}, one entry for each row"
        )
    return order
