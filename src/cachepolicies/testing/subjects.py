"""A model and how it is called: what sites and adapters are tried on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from cachepolicies.adapters.find import network_of
from cachepolicies.contracts.adapter import Adapter
from cachepolicies.testing.comparing import copied
from cachepolicies.testing.denoisers import SHAPE, BlockNetwork, Form, adapter_of_blocks

Inputs = Callable[[int, int, float], Mapping[str, Any]]
"""``inputs(rows, seed, t)`` returns the keyword arguments of a call. Row i depends on the seed and on i alone."""

Taken = Callable[[Mapping[str, Any], "Sequence[int]"], Mapping[str, Any]]
"""Returns the arguments of a call, cut to some rows of the batch."""


def taken_by_first_dimension(inputs: Mapping[str, Any], rows: Sequence[int]) -> Mapping[str, Any]:
    """Return the arguments of a call with every tensor cut to some rows; a tensor ``()`` stays."""
    chosen = list(rows)
    return {
        name: value[chosen] if isinstance(value, Tensor) and value.ndim else value for name, value in inputs.items()
    }


@frozen(eq=False)
class Subject:
    """A model and how it is called.

    Attributes:
        name: for messages.
        model: ``f(**inputs)``.
        inputs: makes the arguments of a call; see `Inputs`.
        taken: cuts them to some rows.
        x_name: the argument that holds the latent: a tensor, or a list with one tensor a sample.
        t_name: the argument that holds the noise level, a tensor.
        t_start: a noise level near the beginning of a run, in the units of the model.
        t_end: one near the end; greater than ``t_start`` where the model counts from 0 (noise) to 1 (data).
        adapter: for sites inside the network, instead of the one registered for its class.
    """

    name: str
    model: Callable[..., Any] = field(repr=False)
    inputs: Inputs = field(repr=False)
    taken: Taken = field(default=taken_by_first_dimension, repr=False)
    x_name: str = "x"
    t_name: str = "t"
    t_start: float = 900.0
    t_end: float = 100.0
    adapter: Adapter | None = field(default=None, repr=False)

    def alone(self) -> Subject:
        """Return it with a model of its own, on which nothing that was done to another is seen."""
        return evolve(self, model=copied(self.model))

    @property
    def network(self) -> nn.Module | None:
        """The module inside the model, ``None`` where there is none."""
        return network_of(self.model)

    @torch.no_grad()
    def bare(self, inputs: Mapping[str, Any]) -> Any:
        """Return what the model itself returns."""
        return self.model(**inputs)

    def level(self, inputs: Mapping[str, Any]) -> float:
        """Return the noise level of a call."""
        return float(inputs[self.t_name].max())

    def moved(self, inputs: Mapping[str, Any], *, by: float, far: float, seed: int = 9) -> dict[str, Any]:
        """Return the arguments of a later call.

        Args:
            inputs: of the call before.
            by: how far t goes, as a part of the way from ``t_start`` to ``t_end``.
            far: how far the latent goes.
            seed: of where it goes. Row i of it does not depend on how many rows there are.
        """
        later = dict(inputs)
        x = inputs[self.x_name]
        rows = [_gone(row, far, 1000 * seed + number) for number, row in enumerate(x)]
        later[self.x_name] = torch.stack(rows) if isinstance(x, Tensor) else rows
        t = inputs[self.t_name]
        later[self.t_name] = t + (self.t_end - self.t_start) * by * (t != 0)
        return later

    def along(self, rows: int, seed: int, steps: int) -> list[Mapping[str, Any]]:
        """Return the arguments of the calls of a run."""
        calls: list[Mapping[str, Any]] = [self.inputs(rows, seed, self.t_start)]
        for step in range(1, steps):
            calls.append(self.moved(calls[-1], by=1 / max(steps, 8), far=0.1, seed=step))
        return calls


def _gone(row: Tensor, far: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return row + (far * torch.randn(row.shape, generator=generator)).to(row.dtype)


def _block_inputs(rows: int, seed: int, t: float) -> dict[str, Any]:
    latents = [
        torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1000 * seed + row)) for row in range(rows)
    ]
    return {"x": torch.cat(latents), "t": torch.full((rows,), t)}


def block_subject(streams: int = 1, form: Form = "tensor") -> Subject:
    """Return a `BlockNetwork` as a subject."""
    model = BlockNetwork(streams=streams, form=form)
    return Subject(f"BlockNetwork-{streams}-{form}", model, _block_inputs, adapter=adapter_of_blocks(streams))


BLOCK_SUBJECTS = (block_subject(), block_subject(2, "object"))
"""What a site is tried on where nothing else is given."""


def tensors_in_order(output: Any) -> list[Tensor]:
    """Return every tensor in an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for item in output.values() for tensor in tensors_in_order(item)]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_in_order(item)]
    return tensors_in_order(list(vars(output).values())) if hasattr(output, "__dict__") else []


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[Counter[str]]:
    """Count how often each module runs, from below whatever stands around it."""
    seen: Counter[str] = Counter()
    handles = []
    for name, module in modules.items():

        def note(*_: Any, name: str = name) -> None:
            seen[name] += 1

        handles.append(module.register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def leaves_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network that have no others inside, by path."""
    return {name: module for name, module in network.named_modules() if not any(True for _ in module.children())}


def left_on(network: nn.Module) -> dict[str, Any]:
    """Return what a site might have left on the modules of a network: classes, attributes and hooks."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("hooks") and value is not None}
        own = sorted(key for key in vars(module) if not key.endswith("hooks"))
        functions = [key for key in ("forward", "__call__") if key in vars(module)]
        found[name] = {"class": type(module), "attributes": own, "hooks": hooks, "functions": functions}
    return found
