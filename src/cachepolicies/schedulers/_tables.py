"""Tables over integer timesteps, read at any t."""

from __future__ import annotations

from torch import Tensor


def interpolate(table: Tensor, t: Tensor) -> Tensor:
    """Read a table at t by linear interpolation.

    Args:
        table: ``(T,)`` the values at t = 0, 1, ..., T - 1.
        t: any shape and real dtype. Outside the table its end value holds.

    Returns:
        The values, with the shape and device of t and the dtype of the table. At an integer t the entry, exactly.
    """
    table = table.to(t.device)
    position = t.to(table.dtype).clamp(0, table.numel() - 1)
    below = position.floor().long()
    above = position.ceil().long()
    # lerp is exact at weight 0; "below + weight * difference" would turn an infinite entry into NaN.
    weight = position - below
    return table[below].lerp(table[above], weight)
