"""Every adapter: uncached bit for bit, reuse as head(input + residual) by hand, rows apart, and errors that help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cachepolicies import CachedDenoiser
from cachepolicies.adapters import Adapter, Blocks, adapter_of
from cachepolicies.policies import Never
from scripted import Scripted
from tiny_models import TINY

KEYS = tuple(TINY)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*nothing was reused:cachepolicies.CacheWarning",
    "ignore:.*too few to gain:cachepolicies.CacheWarning",
    "ignore:User provided device_type of 'cuda':UserWarning",
    "ignore::FutureWarning:diffusers",
)


def tensors(output) -> list[Tensor]:
    """Every tensor in an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if hasattr(output, "values") else output
    return [t for item in items for t in tensors(item)]


def moved(tiny, inputs: dict, seed: int = 9) -> dict:
    """The inputs of a later step: another latent, another t."""
    generator = torch.Generator().manual_seed(seed)
    later = dict(inputs)
    x = inputs[tiny.x_name]

    def step(v: Tensor) -> Tensor:
        return v + 0.1 * torch.randn(v.shape, generator=generator)

    later[tiny.x_name] = [step(v) for v in x] if isinstance(x, list) else step(x)
    t = inputs[tiny.t_name]
    later[tiny.t_name] = t + (tiny.t_end - tiny.t_start) / 10 * (t != 0)
    return later


def level(tiny, inputs: dict) -> float:
    t = inputs[tiny.t_name]
    return float(t.max())


def declared(tiny, *points: dict) -> list[float]:
    return [level(tiny, p) for p in points]


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
        self.residuals: list[Tensor] | None = None
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
        import inspect

        names = list(inspect.signature(type(module).forward).parameters)[1:]
        bound = dict(zip(names, args, strict=False)) | kwargs
        self.entered = [bound[name].clone() for name in self.adapter.streams]

    def _leave(self, module, args, output):
        out = list(output) if isinstance(output, tuple) else output
        leaving = []
        for stream, entered in zip(self.adapter.streams, self.entered, strict=True):
            joined = out[self.last.hands_on.index(stream)] if isinstance(out, list) else out
            tokens = entered.shape[1]
            part = {"all": slice(None), "head": slice(tokens), "tail": slice(joined.shape[1] - tokens, None)}
            leaving.append((stream, joined, part[self.last.part]))
        if not self.replace:
            self.residuals = [j[:, p] - e for (_, j, p), e in zip(leaving, self.entered, strict=True)]
            return None
        for (stream, joined, part), entered, residual in zip(leaving, self.entered, self.residuals, strict=True):
            joined = joined.clone()
            joined[:, part] = entered + residual
            if isinstance(out, list):
                out[self.last.hands_on.index(stream)] = joined
            else:
                return joined
        return tuple(out)

    def _end(self, module, args):
        if not self.replace:
            self.residuals = [args[0] - self.entered[0]]
            return None
        return (self.entered[0] + self.residuals[0],)


def calls_of(modules) -> tuple[list[str], list]:
    """Count calls of forward, from below any gate."""
    calls: list[str] = []
    handles = [m.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__)) for m in modules]
    return calls, handles


def blocks_of(model: nn.Module) -> list[nn.Module]:
    found = []
    for blocks in adapter_of(model).stack:
        module = model.get_submodule(blocks.path)
        found += list(module) if isinstance(module, nn.ModuleList) else [module]
    return found


@pytest.mark.parametrize("key", KEYS)
def test_with_a_policy_that_never_reuses_the_output_is_bit_for_bit_the_bare_one(key):
    tiny = TINY[key]
    model = tiny.build()
    inputs = tiny.inputs(2)
    bare = tensors(model(**inputs))
    for policy in (Never(), Scripted()):
        cached = CachedDenoiser(model, policy, site="blocks")
        with cached.run(timesteps=declared(tiny, inputs)):
            output = cached(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(bare, tensors(output), strict=True))
    assert type(output) is type(model(**inputs))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_reuse_is_the_head_of_input_plus_residual_by_hand(key, batch):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(batch)
    later = moved(tiny, now)
    hand = ByHand(model)
    hand.run(now, replace=False)
    assert max(r.abs().max() for r in hand.residuals) > 1e-3, "the stack does nothing, so the test would prove nothing"
    expected = tensors(hand.run(later, replace=True))
    fresh = tensors(model(**later))

    cached = CachedDenoiser(model, Scripted({level(tiny, later): True}), site="blocks")
    calls, handles = calls_of(blocks_of(model))
    with cached.run(timesteps=declared(tiny, now, later)):
        cached(**now)
        evaluated = len(calls)
        output = tensors(cached(**later))
    for handle in handles:
        handle.remove()
    assert evaluated == len(blocks_of(model))
    assert len(calls) == evaluated, "a block ran in a reuse"
    for got, want, plain in zip(output, expected, fresh, strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)
        assert not torch.allclose(got, plain, atol=1e-6), "the reuse cannot be told from an evaluation"
    assert [r.evaluated[0] for r in cached.trace.records] == [True, False]


@pytest.mark.parametrize("key", KEYS)
def test_reused_next_to_where_it_was_evaluated_the_output_is_the_plain_one(key):
    """Nothing that reaches the output flows past the cut: the streams of the adapter are all there is."""
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(2)
    t = now[tiny.t_name].float()
    close = now | {tiny.t_name: t + (tiny.t_end - tiny.t_start) * 1e-5 * (t != 0)}
    cached = CachedDenoiser(model, Scripted({level(tiny, close): True}), site="blocks")
    with cached.run(timesteps=declared(tiny, now, close)):
        first, second = tensors(cached(**now)), tensors(cached(**close))
    assert not any(cached.trace.records[1].evaluated)
    for evaluated, reused in zip(first, second, strict=True):
        torch.testing.assert_close(reused, evaluated, atol=2e-3 * float(evaluated.abs().max()), rtol=0)


@pytest.mark.parametrize("key", KEYS)
def test_rows_that_decide_apart_come_out_as_if_they_were_alone(key):
    tiny = TINY[key]
    model = tiny.build()
    now = tiny.inputs(3)
    later = moved(tiny, now)
    together = CachedDenoiser(model, Scripted({level(tiny, later): (True, False, True)}), site="blocks")
    with together.run(timesteps=declared(tiny, now, later)):
        together(**now)
        output = tensors(together(**later))
    for row, reuse in enumerate((True, False, True)):
        alone = CachedDenoiser(model, Scripted({level(tiny, later): reuse}), site="blocks")
        with alone.run(timesteps=declared(tiny, now, later)):
            alone(**tiny.rows(now, [row]))
            single = tensors(alone(**tiny.rows(later, [row])))
        if len(output) == 3 * len(single):  # a list with one tensor a sample
            pairs = [(output[row], single[0])]
        else:
            pairs = [(a[row : row + 1], b) for a, b in zip(output, single, strict=True)]
        for a, b in pairs:
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
