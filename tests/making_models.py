"""How to make tiny, randomly initialised models of diffusers' classes, and inputs as their pipelines pass them.

Sequence lengths and head sizes are as small as the classes allow. Row i of the inputs depends on the seed and on i,
never on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from attrs import field, frozen
from torch import Tensor, nn

from cachepolicies.adapters import adapter_of
from cachepolicies.testing import Check, Subject, adapter_checks

Shape = tuple[int, ...]
RowMaker = Callable[[torch.Generator], Any]
"""Makes the argument of one row: a tensor ``(1, ...)``, or a list with one entry."""


@frozen(eq=False)
class TinyModel:
    """How to make one model and what to call it with.

    Attributes:
        build: returns the model: float32, eval mode, no gradients, the same weights at every call.
        inputs: ``inputs(batch, seed=0, t=None)`` returns the keyword arguments of a call; t in units of the class.
        x_name: the argument that holds the latent.
        t_name: the argument that holds the noise level.
        batched: the arguments with one row a sample in their first dimension (or one entry a sample in a list).
        columns: the arguments with one row a sample in their *second* dimension.
        nested: those of ``batched`` that are lists of tensors, each with one row a sample.
        t_start: a noise level near the beginning of a run, in the units of the class.
        t_end: one near the end; greater than ``t_start`` where the class counts from 0 (noise) to 1 (data).
    """

    build: Callable[[], nn.Module]
    inputs: Callable[..., dict[str, Any]]
    x_name: str = "hidden_states"
    t_name: str = "timestep"
    batched: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    t_start: float = 900.0
    t_end: float = 100.0

    def rows(self, inputs: Mapping[str, Any], chosen: list[int]) -> dict[str, Any]:
        """Cut the arguments of a call to some rows of the batch."""
        cut = dict(inputs)
        for name in self.batched:
            rows = inputs[name]
            cut[name] = [_take(each, chosen) for each in rows] if name in self.nested else _take(rows, chosen)
        for name in self.columns:
            cut[name] = inputs[name][:, chosen]
        return cut


def _take(value: Any, rows: list[int]) -> Any:
    if isinstance(value, dict):
        return {key: _take(item, rows) for key, item in value.items()}
    return value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]


# --- weights ---------------------------------------------------------------------------------------------------------


def builder(class_name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            model = getattr(diffusers, class_name)(**config)
            _liven(model)
        return model.eval().requires_grad_(False)

    return build


def _liven(model: nn.Module) -> None:
    """Give parameters that start as zeros small values, so that a tiny model uses all it has."""
    generator = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1, generator=generator)


# --- inputs ----------------------------------------------------------------------------------------------------------


@frozen(eq=False)
class Make:
    """Builds the arguments of a call from what one row needs.

    Attributes:
        rows: argument to its shape without the batch (normal noise), or to a function that makes one row.
        shared: argument to its value for the whole batch, or to a function of the batch size.
        columns: argument to the shape of one row, whose dimension 1 is the batch.
        t_name: name of the noise level.
        t: its default value.
        t_shape: further dimensions of it, every entry the same; ``None`` for one value whatever the batch.
        t_dtype: its dtype.
    """

    rows: Mapping[str, Shape | RowMaker]
    shared: Mapping[str, Any] = field(factory=dict)
    columns: Mapping[str, Shape] = field(factory=dict)
    t_name: str = "timestep"
    t: float = 500.0
    t_shape: Shape | None = ()
    t_dtype: torch.dtype = torch.float32

    def __call__(self, batch: int, seed: int = 0, t: float | None = None) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(1000 * seed + row) for row in range(batch)]
        made: dict[str, Any] = {}
        for name, row in self.rows.items():
            made[name] = _join([row(g) if callable(row) else torch.randn(1, *row, generator=g) for g in generators])
        for name, shape in self.columns.items():
            made[name] = torch.stack([torch.randn(*shape, generator=g) for g in generators], dim=1)
        value = self.t if t is None else t
        size = (1,) if self.t_shape is None else (batch, *self.t_shape)
        made[self.t_name] = torch.full(size, value).to(self.t_dtype)
        for name, value_of in self.shared.items():
            made[name] = value_of(batch) if callable(value_of) else value_of
        return made

    def batched(self) -> tuple[str, ...]:
        return (*self.rows, *(() if self.t_shape is None else (self.t_name,)))


def _join(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: _join([row[key] for row in rows]) for key in rows[0]}
    if isinstance(rows[0], list):
        return [item for row in rows for item in row]
    return torch.cat(rows)


def mask(length: int, shortest: int = 2, dtype: torch.dtype = torch.int64) -> RowMaker:
    """A text mask whose number of valid tokens differs from row to row."""

    def make(generator: torch.Generator) -> Tensor:
        valid = int(torch.randint(shortest, length + 1, (1,), generator=generator))
        return (torch.arange(length) < valid).to(dtype)[None]

    return make


def full_mask(length: int, dtype: torch.dtype = torch.int64) -> RowMaker:
    return lambda _: torch.ones(1, length, dtype=dtype)


def constant(*shape: int, value: float) -> RowMaker:
    return lambda _: torch.full((1, *shape), value)


def label(classes: int) -> RowMaker:
    return lambda generator: torch.randint(classes, (1,), generator=generator)


def as_list(*shape: int) -> RowMaker:
    """One entry of a list of tensors."""
    return lambda generator: [torch.randn(*shape, generator=generator)]


def grid(height: int, width: int, axes: int = 3) -> Tensor:
    """Position ids ``(height * width, axes)`` of an image, row and column in axes 1 and 2."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(height * width, axes)


def angles(length: int, dim: int) -> tuple[Tensor, Tensor]:
    """Rotary embeddings (cos, sin), each ``(length, dim)``, without a batch dimension."""
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


def entry(class_name: str, config: dict[str, Any], make: Make, **rest: Any) -> TinyModel:
    return TinyModel(
        build=builder(class_name, **config),
        inputs=make,
        t_name=make.t_name,
        batched=make.batched(),
        columns=tuple(make.columns),
        **rest,
    )


SIGMA = {"t_start": 0.9, "t_end": 0.1}
"""Classes that take t in [0, 1], 1 is noise."""
REVERSED = {"t_start": 0.1, "t_end": 0.9}
"""Classes that take t in [0, 1], 0 is noise."""


def subject_of(key: str, tiny: TinyModel) -> Subject:
    """Return a tiny model as the checks of `cachepolicies.testing` take it."""
    return Subject(
        key,
        tiny.build(),
        tiny.inputs,
        lambda inputs, rows: tiny.rows(inputs, list(rows)),
        x_name=tiny.x_name,
        t_name=tiny.t_name,
        t_start=tiny.t_start,
        t_end=tiny.t_end,
    )


def checks_of(key: str, tiny: TinyModel) -> list[Check]:
    """What the adapter promises that serves a tiny model, registered or generic; raises where there is none."""
    subject = subject_of(key, tiny)
    assert subject.network is not None
    return adapter_checks(adapter_of(subject.network), subject, label=key)
