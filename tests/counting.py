"""What code does, counted: operators that wait for a device, reads by the host, calls of functions."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero"}
WAITING |= {"aten::_unique2", "aten::masked_select", "aten::unique_dim", "aten::allclose"}
READS = ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")


@contextmanager
def counting_operators():
    """Count the operators that would wait for a device, as torch dispatches them."""
    seen: Counter[str] = Counter()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name().split(".")[0]
            if name in WAITING:
                seen[name] += 1
            return func(*args, **(kwargs or {}))

    with Mode():
        yield seen


def out_of_sight(monkeypatch):
    """Have the engine take every tensor for one on an accelerator, at whose values it cannot look without waiting."""
    for module in ("memory", "record", "stand_in"):
        monkeypatch.setattr(f"cachepolicies.engine.{module}.visible", lambda tensor: False)


@contextmanager
def counting_reads(monkeypatch):
    """Count every way in which Python looks at a tensor's values, dispatched or not."""
    seen: Counter[str] = Counter()
    depth = [0]

    def watch(name):
        original = getattr(torch.Tensor, name)

        def read(self, *args, **kwargs):
            if not depth[0]:
                seen[name] += 1
            depth[0] += 1
            try:
                return original(self, *args, **kwargs)
            finally:
                depth[0] -= 1

        return read

    with monkeypatch.context() as patch:
        for name in READS:
            patch.setattr(torch.Tensor, name, watch(name))
        yield seen


def calls_during(work):
    """Count the calls of functions and methods, in Python and in C, that ``work`` makes."""
    seen: Counter[str] = Counter()

    def note(frame, event, argument):
        if event == "call":
            seen[frame.f_code.co_name] += 1
        elif event == "c_call":
            seen[argument.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    seen.subtract(["setprofile", work.__name__])
    return +seen
