"""The grid of a stream's tokens, as adapters say it, against what the models' own embeddings make of a latent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachepolicies import InputError, NeedsError, Setup, SignalInput
from cachepolicies.adapters import adapter_of, blocks_of
from cachepolicies.registry.load import load_plugins
from cachepolicies.sites import TokenGrid
from tiny_models import EVERY_TINY

KNOWN = [key for key in EVERY_TINY if load_plugins().adapters.create(key.partition("-")[0]).tokens is not None]
NEEDED = ("Flux", "Wan", "SD3", "LTXVideo", "CogVideoX", "DiT")

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


class _EnoughError(Exception):
    """Ends a forward whose rest nobody looks at."""


def entering(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the stream that enters the first block."""
    adapter = adapter_of(model)
    first = next(iter(blocks_of(model, adapter).values()))[0]
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (name,) = adapter.streams
        seen.append((kwargs[name] if name in kwargs else args[0]).clone())

        raise _EnoughError

    handle = first.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with pytest.raises(_EnoughError):
            model(**inputs)
    finally:
        handle.remove()
    return seen[0]


def test_the_classes_that_matter_most_are_known():
    assert all(any(key.startswith(name) for key in KNOWN) for name in NEEDED)


@pytest.mark.parametrize("key", KNOWN)
def test_tokens_lie_on_the_grid_row_by_row(key):
    """A change of the latent at one place of the grid changes the one token that the grid says, and no other."""
    tiny = EVERY_TINY[key]
    model, inputs = tiny.build(), tiny.inputs(1)
    adapter, x = adapter_of(model), inputs[tiny.x_name]
    setup = Setup(model=model, network=model, adapter=adapter)
    signal: Any = TokenGrid().resolve(setup)
    assert signal.available(setup)
    grid = tuple(int(size) for size in signal.read(SignalInput(x, 500.0, call=inputs))[0])
    before = entering(model, inputs)
    assert before.shape[1] == torch.Size(grid).numel()
    for place in {(0,) * len(grid), tuple(size - 1 for size in grid), *itertools.islice(corners(grid), 3)}:
        number = 0
        for at, size in zip(place, grid, strict=True):
            number = number * size + at
        after = entering(model, inputs | {tiny.x_name: changed(x, adapter.channels, grid, place, number)})
        moved = (after - before).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        assert moved == [number]


def corners(grid: tuple[int, ...]):
    """The places at the end of one axis and at the beginning of the others."""
    for axis, size in enumerate(grid):
        yield tuple(size - 1 if each == axis else 0 for each in range(len(grid)))


def changed(x: Tensor, channels: int, grid: tuple[int, ...], place: tuple[int, ...], number: int) -> Tensor:
    """Change a latent where one token is: packed latents at a token, others at the first element of its patch."""
    x = x.clone()
    if x.ndim == 3:
        x[:, number] += 1.0
        return x
    first = x.movedim(channels, 1).select(1, 0)  # views: what is written there is written on x
    for at, tokens in zip(place, grid, strict=True):
        first = first.select(1, at * (first.shape[1] // tokens))
    first += 1.0
    return x


def test_what_does_not_say_its_grid_is_refused():
    tiny = EVERY_TINY["FluxTransformer2DModel"]
    model, inputs = tiny.build(), tiny.inputs(1)
    signal = TokenGrid().resolve(Setup(network=model, adapter=adapter_of(model)))
    with pytest.raises(InputError, match="img_ids"):
        signal.read(SignalInput(inputs["hidden_states"], 0.5, call={}))
    wan = EVERY_TINY["WanTransformer3DModel"].build()
    signal = TokenGrid().resolve(Setup(network=wan, adapter=adapter_of(wan)))
    with pytest.raises(
        InputError, match=r"patch_size. of WanTransformer3DModel is \(1, 2, 2\), not the patch of 2 axes"
    ):
        signal.read(SignalInput(torch.zeros(1, 4, 4, 4), 0.5))
    with pytest.raises(NeedsError, match="an adapter whose `tokens`"):
        TokenGrid().read(SignalInput(torch.zeros(1, 4, 4, 4), 0.5))
    assert not TokenGrid().available(Setup())


def test_tokens_of_other_images_are_refused():
    """A reference image's follow, with another first id; they lie on no grid with the others."""
    tiny = EVERY_TINY["FluxTransformer2DModel"]
    model, inputs = tiny.build(), tiny.inputs(1)
    signal = TokenGrid().resolve(Setup(network=model, adapter=adapter_of(model)))
    ids = torch.cat([inputs["img_ids"], inputs["img_ids"] + torch.tensor([1.0, 0.0, 0.0])])
    x = torch.cat([inputs["hidden_states"]] * 2, dim=1)
    with pytest.raises(InputError, match="its first image has 4 x 4 tokens, and others follow"):
        signal.read(SignalInput(x, 0.5, call={"img_ids": ids}))


def test_framepack_has_other_tokens_in_its_stream():
    assert load_plugins().adapters.create("HunyuanVideoFramepackTransformer3DModel").tokens is None
