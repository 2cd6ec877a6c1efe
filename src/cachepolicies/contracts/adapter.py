"""What has to be known of a model class to cut it at its block stack: an adapter, which is data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies.base.errors import SettingsError

Clock: TypeAlias = Literal["timestep", "unit", "reversed-unit"]
"""How the model's own pipelines write the noise level.

``"timestep"``: the scheduler's t as it is; ``"unit"``: t / 1000; ``"reversed-unit"``: 1 - t / 1000, which rises.
"""

BlockSignal: TypeAlias = Callable[[nn.Module, Mapping[str, Any]], Tensor]
"""Computes a signal ``(B, ...)`` from the first block and the arguments it is called with, by name."""


def _rows(values: Mapping[str, Rows] | Iterable[str] | None) -> Mapping[str, Rows] | None:
    if values is None or isinstance(values, Mapping):
        return values
    return dict.fromkeys(values, "first")


def _in_order(values: Iterable[Blocks]) -> tuple[Blocks, ...]:
    return tuple(values)


def _paths(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


Unpack: TypeAlias = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""Returns a latent as ``(B, C, *axes)``, time, height and width in this order, from x and the arguments of the model's
call by name; raises `InputError` where these do not say how."""


TokensOf: TypeAlias = Callable[[nn.Module, Tensor, Mapping[str, Any]], tuple[int, ...]]
"""Returns how many tokens lie along each axis (time, height and width in this order, as far as there are), from the
network, the latent x and the arguments of the model's call by name; raises `InputError` where these do not say."""


ReadsMemory: TypeAlias = Callable[[Mapping[str, Any]], bool]
"""Tells from the arguments of the model's call, by name, whether it only reads the memory that it is handed."""


HandsOn: TypeAlias = str | tuple[str, ...] | Callable[[nn.Module, Mapping[str, Any]], Any]
"""What a bypassed block returns; see `Blocks`."""

SPATIAL = "spatial_attention"
"""The kind of an attention among the latent's tokens: over space, or over space and time at once; joint with the text
where a block has one attention for both."""

TEMPORAL = "temporal_attention"
"""The kind of an attention among frames only."""

CROSS = "cross_attention"
"""The kind of an attention from the latent to something else: the text, an image, sound."""

MLP = "mlp"
"""The kind of what is computed for every token by itself."""

Kinds: TypeAlias = Mapping[str, tuple[str, ...]]
"""Kind of module to where in a block it is: paths, in which ``*`` stands for any one name; not every block has all.

Of a module that runs twice in a block, for image and text say, ``"ff#2"`` is the second time.
"""


def _kinds(values: Mapping[str, str | Iterable[str]]) -> Kinds:
    return {kind: _paths(paths) for kind, paths in values.items()}


Rows: TypeAlias = Literal["first", "second", "list"]
"""How an argument holds the samples of a batch: along its first or second dimension (nested tensors too), or as a list
with one entry a sample."""


@frozen
class Blocks:
    """One `torch.nn.ModuleList` of the stack, or a single module in it.

    Attributes:
        path: of the list in the model; an empty list is passed over.
        hands_on: what a bypassed block returns: the name of its argument, a tuple of names in the order of its return
            value, or a function of the block and its arguments. A stream leaves the last block where its name stands
            here.
        part: which of the tokens that leave the last block (dimension 1) are the stream's, where another stream was
            joined to it on the way: ``"head"``, ``"tail"``, or ``"all"`` where nothing was.
        kinds: where in a block the modules of each kind are, ``"mlp"`` say; the outputs that the block combines.
    """

    path: str
    hands_on: HandsOn = "hidden_states"
    part: Literal["all", "head", "tail"] = "all"
    kinds: Kinds = field(factory=dict, converter=_kinds, repr=False)


@frozen
class OutputOf:
    """A signal that is the output of a module which runs before the stack.

    Attributes:
        path: of the module.
        pick: its place, if the module returns a tuple.
    """

    path: str
    pick: int | None = None


@frozen
class Adapter:
    """Where the block stack of a model class is, what flows through it, and what can be seen on the way.

    Everything between the embedding and the output head is replaced by *input + remembered residual* when an evaluation
    is skipped; the head still runs, with the current t.

    Attributes:
        model: name of the model class.
        stack: the block lists, in the order in which they run.
        streams: what is replaced: names of arguments of the first block, each a tensor ``(B, ...)``. A stream that
            nothing reads behind the stack is left out.
        ends_before: path of the module whose first argument is where the stream leaves, where that is not the end of
            the last block.
        signals: name to how it is obtained; computed when a policy declares it.
        unpack: how the latent that the model is called with lies on its grid, for what looks at it along its axes;
            ``None`` where it is ``(B, C, *axes)`` already.
        tokens: on which grid the tokens of the one stream lie, one after the other, row by row, for what looks at it
            along its axes; ``None`` where that is not known.
        channels: dimension of the latent, and of what the model predicts, in which the channels are; 2 for
            ``(B, F, C, H, W)``, -1 where they come last.
        clock: how the model's pipelines write the noise level.
        velocity: which way the model's output points, where it was trained for flow matching: ``"noise"``, so that
            ``dx = output * dsigma``; ``"data"``, where its pipelines turn the sign; ``None`` where they make the
            velocity of it in another way.
        rows: name of every argument of the model that has one row a sample, to how it has; ``None`` to tell by the
            first dimension.
        rows_independent: whether a sample comes out the same in any batch. Where not (inner shapes depend on the whole
            batch), one decision serves the batch by default.
        rows_a_sample: from the latent, how many rows of a stream belong to one sample and stand next to each other,
            where the model folds frames or windows into the batch, ``(B * F, ...)``; ``None`` where it does not.
        reads_memory: which of the calls that are handed a memory of keys and values only read it, so that nothing is
            lost where one is skipped; ``None``: none, all of them run as they are.
        source: who cuts here: the publication or implementation that the place follows.
        note: what else to know.
        take_turns: whether the block lists take turns, a block of each, and are equally long.
    """

    model: str
    stack: tuple[Blocks, ...] = field(converter=_in_order)
    streams: tuple[str, ...] = field(default=("hidden_states",), converter=_paths)
    ends_before: str | None = None
    signals: Mapping[str, BlockSignal | OutputOf] = field(factory=dict)
    unpack: Unpack | None = None
    tokens: TokensOf | None = None
    channels: int = 1
    clock: Clock = "timestep"
    velocity: Literal["noise", "data"] | None = "noise"
    rows: Mapping[str, Rows] | None = field(default=None, converter=_rows)
    rows_independent: bool = True
    rows_a_sample: Callable[[Tensor], int] | None = None
    reads_memory: ReadsMemory | None = None
    source: str = ""
    note: str = ""
    take_turns: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.stack or not self.streams:
            raise SettingsError(f"adapter of {self.model!r}: a stack has at least one block list and one stream")


def submodule(model: nn.Module, path: str, subject: str) -> nn.Module:
    """Return the module at a path.

    Raises:
        SettingsError: there is none; names its nearest known parent's children.
    """
    module, walked = model, ""
    for part in path.split("."):
        child = module._modules.get(part)  # looked up at every call, to see modules that were exchanged
        if child is None:
            children = dict(module.named_children())
            where = f"{type(model).__name__}.{walked}" if walked else type(model).__name__
            known = ", ".join(list(children)[:20]) or "no submodules"
            raise SettingsError(f"{subject}: {path!r} names no module of {type(model).__name__}; {where} has {known}")
        module, walked = child, f"{walked}.{part}" if walked else part
    return module
