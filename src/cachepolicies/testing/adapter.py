"""What every adapter promises, as checks: `check_adapter`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from cachepolicies.adapters.find import blocks_of
from cachepolicies.base.outputs import tensor_of
from cachepolicies.contracts.adapter import Adapter, Blocks
from cachepolicies.contracts.policy import CachePolicy
from cachepolicies.contracts.step import Step
from cachepolicies.policies.never import Never
from cachepolicies.testing.bench import Pattern
from cachepolicies.testing.checks import Check, Suite, expect, run_all, same
from cachepolicies.testing.comparing import difference_between
from cachepolicies.testing.subjects import Subject, calls_of, tensors_in_order
from cachepolicies.wrapper.denoiser import CachedDenoiser

_MOVES = 1e-3
"""The least that a stack changes of a stream, or nothing could be told."""


@frozen(eq=False)
class AdapterCase:
    """An adapter with the model it is for; see `check_adapter`."""

    adapter: Adapter
    subject: Subject

    @property
    def network(self) -> nn.Module:
        """The network."""
        network = self.subject.network
        expect(network is not None, f"{type(self.subject.model).__name__} is no torch.nn.Module and names no network")
        assert network is not None
        return network

    def cached(self, policy: CachePolicy) -> CachedDenoiser:
        """Return the model, wrapped and cut as the adapter says."""
        return CachedDenoiser(self.subject.model, policy, site="blocks", adapter=self.adapter, per_sample=True)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the blocks of the stack by path, in order."""
        return {path: block for path, (block, _) in blocks_of(self.network, self.adapter).items()}

    def last(self) -> Blocks:
        """Return what the adapter says of the last block."""
        return list(blocks_of(self.network, self.adapter).values())[-1][1]

    def calls(self, rows: int) -> list[Mapping[str, Any]]:
        """Return the arguments of two calls, one after the other."""
        now = self.subject.inputs(rows, 0, self.subject.t_start)
        return [now, self.subject.moved(now, by=0.1, far=0.1)]

    @torch.no_grad()
    def run(self, policy: CachePolicy, calls: Sequence[Mapping[str, Any]]) -> tuple[list[Any], CachedDenoiser]:
        """Return the outputs of a run, and the wrapper."""
        cached = self.cached(policy)
        with cached.run(timesteps=[self.subject.level(inputs) for inputs in calls]) as run:
            return [run(**inputs) for inputs in calls], cached


class StackByHand:
    """The cut of a stack made with torch's own hooks: notes the residual in one pass, puts it in place in another."""

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        found = list(blocks_of(network, adapter).values())
        self.adapter, self.last = adapter, found[-1][1]
        self.first = found[0][0]
        self.end = found[-1][0] if adapter.ends_before is None else network.get_submodule(adapter.ends_before)
        self.entered: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.replaces = False

    @torch.no_grad()
    def run(self, subject: Subject, inputs: Mapping[str, Any], *, replaces: bool) -> Any:
        """Return what the model returns, with the residual that was noted put in place if ``replaces``."""
        self.replaces = replaces
        handles = [self.first.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if self.adapter.ends_before is None:
            handles.append(self.end.register_forward_hook(self._leave))
        else:
            handles.append(self.end.register_forward_pre_hook(self._end))
        try:
            return subject.bare(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        bound = dict(zip(names, args, strict=False)) | dict(kwargs)
        self.entered = [bound[name].clone() for name in self.adapter.streams]

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        out = list(output) if isinstance(output, tuple) else [output]
        hands_on = (self.last.hands_on,) if isinstance(self.last.hands_on, str) else self.last.hands_on
        assert isinstance(hands_on, tuple)
        residuals = []
        for number, (stream, entered) in enumerate(zip(self.adapter.streams, self.entered, strict=True)):
            at, tokens = hands_on.index(stream), entered.shape[1]
            length = out[at].shape[1]
            part = {"all": slice(None), "head": slice(tokens), "tail": slice(length - tokens, None)}[self.last.part]
            if self.replaces:
                joined = out[at].clone()
                joined[:, part] = entered + self.residuals[number]
                out[at] = joined
            else:
                residuals.append(out[at][:, part] - entered)
        if not self.replaces:
            self.residuals = residuals
            return None
        return tuple(out) if isinstance(output, tuple) else out[0]

    def _end(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self.replaces:
            self.residuals = [args[0] - self.entered[0]]
            return None
        return (self.entered[0] + self.residuals[0], *args[1:])


def _close(got: Any, want: Any, within: float, found: str) -> None:
    for one, other in zip(tensors_in_order(got), tensors_in_order(want), strict=True):
        far = float((one - other).abs().max())
        expect(far <= within * max(1.0, float(other.abs().max())), f"{found}: {far:g} apart")


ADAPTER: Suite[AdapterCase] = Suite("adapter")


@ADAPTER.property()
def fits_its_model(case: AdapterCase) -> None:
    """It is for the model's class; the blocks and the arguments that it names are there."""
    classes = [kind.__name__ for kind in type(case.network).__mro__]
    expect(case.adapter.model in classes, f"it is for {case.adapter.model!r}, the model is a {classes[0]}")
    expect(case.blocks(), "the stack holds no block")
    known = inspect.signature(type(case.network).forward).parameters
    unknown = [name for name in case.adapter.rows or () if name not in known]
    expect(not unknown, f"rows names {unknown}; the arguments are {', '.join(known)}")


@ADAPTER.property()
def never_reusing_is_the_bare_model(case: AdapterCase) -> None:
    """With a policy that never reuses, the outputs are those of the bare model, bit for bit and of its type."""
    calls = case.calls(2)
    bare = [case.subject.bare(inputs) for inputs in calls]
    for policy in (Never(), Pattern()):
        outputs, _ = case.run(policy, calls)
        for got, want in zip(outputs, bare, strict=True):
            expect(type(got) is type(want), f"it returns a {type(got).__name__}, not a {type(want).__name__}")
            difference = difference_between(tensors_in_order(got), tensors_in_order(want), "the output")
            same(difference, f"with the policy {policy.name!r} it is not the bare model")


@ADAPTER.property()
def the_stack_does_something(case: AdapterCase) -> None:
    """What leaves the stack differs from what entered it, in every stream: otherwise nothing of it could be told."""
    hand = StackByHand(case.network, case.adapter)
    hand.run(case.subject, case.calls(2)[0], replaces=False)
    for stream, residual in zip(case.adapter.streams, hand.residuals, strict=True):
        far = float(residual.abs().max())
        expect(far > _MOVES, f"stream {stream!r} changes by {far:g}; give the model livelier weights")


@ADAPTER.property()
def a_reuse_runs_no_block(case: AdapterCase) -> None:
    """A reused call runs no block of the stack; an evaluated one runs each of them once."""
    calls, blocks = case.calls(1), case.blocks()
    cached = case.cached(Pattern({(1, "")}))
    with torch.no_grad(), cached.run(timesteps=[case.subject.level(inputs) for inputs in calls]) as run:
        for number, inputs in enumerate(calls):
            with calls_of(blocks) as ran:
                run(**inputs)
            wanted = {} if number else dict.fromkeys(blocks, 1)
            expect(dict(ran) == wanted, f"{'a reused' if number else 'an evaluated'} call ran {dict(ran)}")


@ADAPTER.property()
def a_reuse_is_the_head_of_input_and_residual(case: AdapterCase) -> None:
    """A reused call is what the model makes of *input + remembered residual*, cut by hand with torch's own hooks."""
    for rows in (1, 2):
        now, later = case.calls(rows)
        hand = StackByHand(case.network, case.adapter)
        hand.run(case.subject, now, replaces=False)
        expected = hand.run(case.subject, later, replaces=True)
        outputs, cached = case.run(Pattern({(1, "")}), [now, later])
        expect(not any(cached.trace.records[1].evaluated), "the second call was not reused")
        _close(outputs[1], expected, 2e-6, f"a batch of {rows}, by hand and by the site")


@ADAPTER.property()
def a_reuse_can_be_told_from_an_evaluation(case: AdapterCase) -> None:
    """A reuse at another latent and t is not what an evaluation would be."""
    now, later = case.calls(1)
    outputs, _ = case.run(Pattern({(1, "")}), [now, later])
    got, fresh = tensor_of_any(outputs[1]), tensor_of_any(case.subject.bare(later))
    expect(not torch.allclose(got, fresh, atol=1e-6), "the reuse is the evaluation: the stack is not what is cut")


def tensor_of_any(output: Any) -> Tensor:
    """Return the first tensor in an output, whatever its form."""
    tensors = tensors_in_order(output)
    return tensors[0] if tensors else tensor_of(output)


@ADAPTER.property()
def nothing_flows_past_the_cut(case: AdapterCase) -> None:
    """Reused right next to where it was evaluated, the output is the plain one: the streams are all there is."""
    now = case.subject.inputs(2, 0, case.subject.t_start)
    close = case.subject.moved(now, by=1e-5, far=0.0)
    outputs, cached = case.run(Pattern({(1, "")}), [now, close])
    expect(not any(cached.trace.records[1].evaluated), "the second call was not reused")
    for one, other in zip(tensors_in_order(outputs[1]), tensors_in_order(outputs[0]), strict=True):
        far, size = float((one - other).abs().max()), float(other.abs().max())
        expect(far <= 2e-3 * size, f"{far:g} apart, of {size:g}: the head reads a stream that is not named")


@ADAPTER.property()
def rows_that_part_are_as_alone(case: AdapterCase) -> None:
    """Samples that are evaluated and reused in one batch come out as if they were alone."""
    calls, chosen = case.calls(3), (True, False, True)
    reused = {(1, "", sample) for sample, again in enumerate(chosen) if again}
    together, _ = case.run(Pattern(reused), calls)
    whole = tensors_in_order(together[1])
    for row, again in enumerate(chosen):
        own = [case.subject.taken(inputs, [row]) for inputs in calls]
        single = tensors_in_order(case.run(Pattern({(1, "")} if again else ()), own)[0][1])
        apart = len(whole) == 3 * len(single)  # a list with one tensor a sample
        parts = [whole[row]] if apart else [tensor[row : row + 1] for tensor in whole]
        for one, other in zip(parts, single, strict=False):
            far = float((one - other).abs().max())
            expect(far <= 2e-5 * max(1.0, float(other.abs().max())), f"row {row} of {chosen}: {far:g} apart")


@ADAPTER.property(unless=lambda case: None if case.adapter.signals else "it names no signals")
def supplies_its_signals(case: AdapterCase) -> None:
    """Every signal that it names can be read, with one finite row a sample, detached, and differs from call to call."""
    names = tuple(sorted(case.adapter.signals))
    seen: list[dict[str, Tensor]] = []

    def look(step: Step) -> None:
        seen.append(dict(step.signals))

    case.run(Pattern(signals=names, see=look), case.calls(2))
    for name in names:
        first, second = (signals[name] for signals in seen)
        expect(first.shape[0] == 2, f"signal {name!r} has shape {tuple(first.shape)} for 2 samples")
        expect(not first.requires_grad, f"signal {name!r} is not detached")
        expect(bool(torch.isfinite(first).all()), f"signal {name!r} is not finite")
        expect(not torch.equal(first, second), f"signal {name!r} is the same at another latent and t")


def adapter_checks(
    adapter: Adapter,
    subject: Subject,
    *,
    label: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Return the checks of an adapter, for `parametrize_with_checks`; takes what `check_adapter` takes."""
    return ADAPTER.checks(AdapterCase(adapter, subject), adapter.model, label or adapter.model, expected_failures)


def check_adapter(adapter: Adapter, subject: Subject, **options: Any) -> None:
    """Check that an adapter is true of its model.

    ```python
    check_adapter(nova(), Subject("nova", NovaModel(), inputs, t_start=0.9, t_end=0.1))
    ```

    Args:
        adapter: what is said of the model's class.
        subject: a model of the class, in float32, as small as the class allows, with weights that do something; and
            how it is called.
        **options: ``label=``: short name for ids. ``expected_failures=``: name of a property to the reason why it does
            not hold.

    Raises:
        PropertyError: a property does not hold, or was expected not to and does.
        SettingsError: ``expected_failures`` names what is no property.
    """
    run_all(adapter_checks(adapter, subject, **options))
