"""The stack of a model without a gate: its blocks, how often they run, and its cut made with torch's own hooks."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from cachepolicies.adapters import Adapter, Blocks, adapter_of


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the stack, in order."""
    found = []
    for blocks in adapter_of(model).stack:
        module = model.get_submodule(blocks.path)
        found += list(module) if isinstance(module, nn.ModuleList) else [module]
    return found


def calls_of(modules) -> tuple[list[str], list]:
    """Count calls of forward, from below any gate."""
    calls: list[str] = []
    handles = [m.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__)) for m in modules]
    return calls, handles


def cut(model: nn.Module, adapter: Adapter) -> tuple[nn.Module, nn.Module, Blocks]:
    """First block, and the last block or the module in front of which the stack ends."""
    members = []
    for blocks in adapter.stack:
        found = model.get_submodule(blocks.path)
        members += [(b, blocks) for b in (found if isinstance(found, nn.ModuleList) else [found])]
    end = members[-1][0] if adapter.ends_before is None else model.get_submodule(adapter.ends_before)
    return members[0][0], end, members[-1][1]


class ByHand:
    """The stack's cut with torch's own hooks: records the residual in one pass, puts it in place in another."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.adapter = model, adapter_of(model)
        self.first, self.end, self.last = cut(model, self.adapter)
        self.entered: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.replace = False

    def run(self, inputs: dict, replace: bool):
        self.replace = replace
        handles = [self.first.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if self.adapter.ends_before is None:
            handles.append(self.end.register_forward_hook(self._leave))
        else:
            handles.append(self.end.register_forward_pre_hook(self._end))
        try:
            return self.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module, args, kwargs):
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        bound = dict(zip(names, args, strict=False)) | kwargs
        self.entered = [bound[name].clone() for name in self.adapter.streams]

    def _place(self, stream: str) -> int:
        """Where a stream stands in what the last block returns."""
        names = self.last.hands_on
        assert isinstance(names, (str, tuple))
        return names.index(stream)

    def _leave(self, module, args, output):
        out = list(output) if isinstance(output, tuple) else output
        leaving = []
        for stream, entered in zip(self.adapter.streams, self.entered, strict=True):
            joined = out[self._place(stream)] if isinstance(out, list) else out
            tokens = entered.shape[1]
            parts = {"all": slice(None), "head": slice(tokens), "tail": slice(joined.shape[1] - tokens, None)}
            leaving.append((stream, joined, parts[self.last.part]))
        if not self.replace:
            self.residuals = [j[:, p] - e for (_, j, p), e in zip(leaving, self.entered, strict=True)]
            return None
        for (stream, joined, part), entered, residual in zip(leaving, self.entered, self.residuals, strict=True):
            joined = joined.clone()
            joined[:, part] = entered + residual
            if isinstance(out, list):
                out[self._place(stream)] = joined
            else:
                return joined
        return tuple(out)

    def _end(self, module, args):
        if not self.replace:
            self.residuals = [args[0] - self.entered[0]]
            return None
        return (self.entered[0] + self.residuals[0],)
