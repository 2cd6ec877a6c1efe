"""Telling apart calls by what they are conditioned on, without keeping it alive and without needless reads."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from cachepolicies.base.foreign import writes_so_far
from cachepolicies.base.sources import is_memory
from cachepolicies.contracts.adapter import ReadsMemory

_TEXT = re.compile(r"encoder_hidden_states|prompt|text|caption|class|label|context|pooled|cond|^y$")
"""Names of arguments by which networks take what they are asked to draw."""

_STEADILY, _STEADILY_TEXT = 2, 4
"""Calls in a row at which an argument changed, after which it is taken for one that changes at every step."""

_SMALL = 4096
"""Elements of a tensor that is copied to be known again; of a larger one a checksum of its bits is kept."""

_PRIME, _ODD = 0x100000001B3, 0x9E3779B97F4A7C15 - (1 << 64)
"""Factors of the checksum, in arithmetic modulo 2^64: of a bit pattern, and of its place."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@define(eq=False, slots=True)
class Kept:
    """What is kept of a tensor to know it again, though it may be gone by then: some make it anew for every call.

    Attributes:
        alive: the tensor, as long as somebody else holds it.
        version: how often it had been written on.
        form: shape, dtype and device.
        mark: its values if there are few, else ``()`` int64, a checksum of them; ``None`` where it has no plain memory.
    """

    alive: weakref.ref[Tensor]
    version: int
    form: tuple[Any, ...]
    mark: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> Kept:
        """Take note of a tensor; nothing waits for its device."""
        return cls(weakref.ref(tensor), writes_so_far(tensor), _form(tensor), _mark(tensor))

    @classmethod
    def mere(cls, tensor: Tensor) -> Kept:
        """Take note of a tensor that is to be known again only as long as it is there."""
        return cls(weakref.ref(tensor), writes_so_far(tensor), (), None)

    def is_same(self, tensor: object) -> bool:
        """Return whether something is the very tensor, and nobody has written on it since; reads nothing."""
        return isinstance(tensor, Tensor) and self.alive() is tensor and self.version == writes_so_far(tensor)

    def still_equals(self, tensor: Tensor) -> bool | None:
        """Return whether a tensor has the values of this one, ``None`` where it is gone or was written on since.

        Waits for the device where they are two tensors.
        """
        own = self.alive()
        if own is None or self.version != writes_so_far(own):
            return None
        return own is tensor or (own.shape == tensor.shape and own.dtype == tensor.dtype and torch.equal(own, tensor))

    def differs(self, tensor: object) -> bool:
        """Return whether something is another tensor with other values; waits for the device if it has to compare."""
        if self.is_same(tensor):
            return False
        if not isinstance(tensor, Tensor) or self.form != _form(tensor):
            return True
        mark = _mark(tensor)
        return mark is None or self.mark is None or not torch.equal(mark, self.mark)


@define(eq=False)
class Conditioned:
    """What the last call of a branch was conditioned on, and which of it changes from call to call.

    Scales and further noise levels (numbers, and floating-point tensors of one dimension) are not looked at. Neither is
    an argument that changed at each of the last two calls: features that were computed for the step, say. For what the
    model is asked to draw, known by its name, it takes four.
    """

    kept: dict[str, Any]
    _changed: dict[str, int] = field(factory=dict)

    @classmethod
    def of(cls, conditioning: Mapping[str, Any]) -> Conditioned:
        """Take note of the conditioning of a branch's first call."""
        return cls(weakly(conditioning))

    def is_steady(self, now: Mapping[str, Any]) -> bool:
        """Return whether the very objects come again that came at the last call, and changed nothing then."""
        if self._changed or len(self.kept) != len(now):
            return False
        for name, value in now.items():  # at every call: the common kinds first, and no generator
            kept = self.kept.get(name)
            if kept.__class__ is Kept:
                if not kept.is_same(value):
                    return False
            elif kept is not value and not _alike(kept, value, _is_another):
                return False
        return True

    def changes(self, now: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the arguments that differ from those of the last call, where that was not to be expected.

        Device memory is compared only where an argument is another object than before.
        """
        return tuple(
            name
            for name in self._differing(now)
            if self._changed.get(name, 0) < (_STEADILY_TEXT if _is_text(name) else _STEADILY)
        )

    def note(self, now: Mapping[str, Any]) -> None:
        """Take note of the conditioning of the branch's next call."""
        if not self.is_steady(now):
            changed = {name: self._changed.get(name, 0) + 1 for name in self._differing(now)}
            self.kept, self._changed = weakly(now), changed

    def _differing(self, now: Mapping[str, Any]) -> Iterator[str]:
        for name in {**self.kept, **now}:
            missing = name not in now or name not in self.kept
            if missing or (not _is_level(now[name]) and differs(self.kept[name], now[name])):
                yield name


def text_of(conditioning: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say what to draw, by name."""
    return {name: value for name, value in conditioning.items() if _is_text(name)}


def writes_memory(conditioning: Mapping[str, Any], only_reads: ReadsMemory | None) -> bool:
    """Return whether a call is handed a memory of keys and values that its blocks may write.

    Args:
        conditioning: the arguments of the call by name.
        only_reads: of the model's adapter: tells of such a call whether it only reads it; ``None``: none does.
    """
    handed = any(is_memory(name) and not isinstance(value, (str, int, float)) for name, value in conditioning.items())
    return handed and (only_reads is None or not only_reads(conditioning))


def _is_level(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.ndim <= 1 and value.dtype.is_floating_point
    return isinstance(value, (float, np.floating))


@functools.cache
def _is_text(name: str) -> bool:
    return _TEXT.search(name) is not None


@frozen(eq=False)
class _Attributes:
    """What is kept of an object: its attributes, which may be tensors."""

    kind: type
    held: dict[str, Any]


def _attributes(value: object) -> dict[str, Any] | None:
    """Return the attributes of an object that is made of them; ``None`` for what is compared as it is."""
    if isinstance(value, (type, Enum)) or callable(value):
        return None
    held = getattr(value, "__dict__", None)
    return held if isinstance(held, dict) else None


def weakly(value: Any) -> Any:
    """Return the value with what is kept of them in the place of its tensors, also of those that an object holds."""
    if isinstance(value, Tensor):
        return Kept.of(value)
    if isinstance(value, Mapping):
        return {key: weakly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(weakly(item) for item in value)
    if isinstance(value, np.ndarray):
        return value.copy()
    held = _attributes(value)
    return value if held is None else _Attributes(type(value), weakly(held))


def differs(known: Any, now: Any) -> bool:
    """Return whether conditioning differs in any value.

    Args:
        known: as `weakly` keeps it.
        now: of a call.
    """
    return not _alike(known, now, Kept.differs)


def same_objects(known: Any, now: Any) -> bool:
    """Return whether conditioning consists of the very same tensors and equal plain values; reads no tensor.

    Args:
        known: as `weakly` keeps it.
        now: of a call.
    """
    return _alike(known, now, _is_another)


def _is_another(known: Kept, now: object) -> bool:
    return not known.is_same(now)


def _alike(known: Any, now: Any, differing: Any) -> bool:
    if isinstance(known, Kept):
        return not differing(known, now)
    if isinstance(now, Tensor):
        return False
    if isinstance(known, dict):
        if not isinstance(now, Mapping) or known.keys() != now.keys():
            return False
        return all(_alike(known[key], now[key], differing) for key in known)
    if isinstance(known, tuple):
        if not isinstance(now, (list, tuple)) or len(known) != len(now):
            return False
        return all(_alike(p, q, differing) for p, q in zip(known, now, strict=True))
    if isinstance(known, _Attributes):
        return known.kind is type(now) and _alike(known.held, _attributes(now), differing)
    if known is now:
        return True
    if type(known) is not type(now):
        return False
    return np.array_equal(known, now) if isinstance(known, np.ndarray) else bool(known == now)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _mark(tensor: Tensor) -> Tensor | None:
    """Return the values of a small tensor, of a larger one a checksum of its bits, whatever the order of the sum."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return None
    values = tensor.detach()
    if values.numel() <= _SMALL:
        return values.clone()
    values = values.resolve_conj().resolve_neg().contiguous().reshape(-1)
    if values.is_complex():
        values = torch.view_as_real(values).reshape(-1)
    bits = values.view(_BITS[values.element_size()]).long()
    places = torch.arange(len(bits), device=bits.device)
    return ((bits + 1) * _PRIME ^ (places * _ODD)).mul_(_ODD | 1).sum()
