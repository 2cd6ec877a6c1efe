"""Counting floating-point operations while a model runs, to know what part of a call a reuse skips.

torch's own counter misses the attention kernel of the CPU and may take an operation apart into others, which changes
the last bits. This one only looks: every operation runs as it would without it.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cachepolicies.base.foreign import inside_compiled, is_compiled_by_itself

_aten = torch.ops.aten


def _matrices(a: Tensor, b: Tensor) -> int:
    """Return 2 * (batch and rows of a) * (columns of a) * (columns of b) of a product of matrices."""
    return 2 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Return the two products of attention ``(..., queries, channels) x (..., keys, channels)``."""
    return 2 * query.numel() * key.shape[-2] + 2 * math.prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]


def _convolution(weight: Tensor, output: Any) -> int:
    made: Tensor = output
    return 2 * made.numel() * math.prod(weight.shape[1:])


def _linear(args: Sequence[Any], output: Any) -> int:
    flops: int = 2 * args[0].numel() * args[1].shape[0]
    return flops


_FORMULAS: dict[Any, Callable[[Sequence[Any], Any], int]] = {
    _aten.mm: lambda args, out: _matrices(args[0], args[1]),
    _aten.bmm: lambda args, out: _matrices(args[0], args[1]),
    _aten.matmul: lambda args, out: _matrices(args[0], args[1]),
    _aten.addmm: lambda args, out: _matrices(args[1], args[2]),
    _aten.baddbmm: lambda args, out: _matrices(args[1], args[2]),
    _aten.linear: _linear,
    _aten.convolution: lambda args, out: _convolution(args[1], out),
    _aten._convolution: lambda args, out: _convolution(args[1], out),
    _aten.conv1d: lambda args, out: _convolution(args[1], out),
    _aten.conv2d: lambda args, out: _convolution(args[1], out),
    _aten.conv3d: lambda args, out: _convolution(args[1], out),
    _aten.scaled_dot_product_attention: lambda args, out: _attention(args[0], args[1], args[2]),
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda args, out: _attention(args[0], args[1], args[2]),
    _aten._scaled_dot_product_flash_attention: lambda args, out: _attention(args[0], args[1], args[2]),
    _aten._scaled_dot_product_efficient_attention: lambda args, out: _attention(args[0], args[1], args[2]),
    _aten._scaled_dot_product_cudnn_attention: lambda args, out: _attention(args[0], args[1], args[2]),
}
"""What is counted: products of matrices, convolutions and attention; the rest is small beside them."""


_TAKEN_APART = (_aten.einsum, _aten.tensordot, _aten.bilinear)
"""Composed operations that arrive whole in inference mode; the products inside of them are what counts."""


class CountedFlops(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        total: floating-point operations so far.
        whole: whether every operation could be looked at.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.whole = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Have ``torch.compile`` compile as always. What it meets inside another mode it gives up for good."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation as it is, and add what it costs."""
        if not hasattr(func, "overloadpacket"):  # an operator that takes functions: flex attention, control flow
            self.whole = False
            return func(*args, **(kwargs or {}))
        if func.overloadpacket in _TAKEN_APART:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(args, output)
        return output


def can_count(denoiser: Callable[..., Any], network: nn.Module) -> bool:
    """Return whether the operations of a call can be seen: not where a part of it is compiled.

    Args:
        denoiser: what is called: the network, or something around it, which may have a compiled one.
        network: the module inside.
    """
    around = inspect.unwrap(denoiser)
    around = getattr(around, "__self__", around)
    parts = [network, around, *getattr(around, "__dict__", {}).values()]
    for cell in getattr(around, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            parts.append(cell.cell_contents)
    return not any(
        is_compiled_by_itself(module) or inside_compiled(module) is not None
        for part in parts
        if isinstance(part, nn.Module)
        for module in part.modules()
    )


_measured: WeakKeyDictionary[nn.Module, dict[str, dict[str, float]]] = WeakKeyDictionary()


def measured_of(network: nn.Module, cut: str) -> dict[str, float]:
    """Return what was measured of a network at a cut, to read and to fill in: once, however often it is enabled.

    Args:
        network: the module.
        cut: says where it is cut.
    """
    return _measured.setdefault(network, {}).setdefault(cut, {})
