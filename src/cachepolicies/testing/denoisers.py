"""Small denoisers to try plugins on: the exact one of a Gaussian mixture, a linear one, and a network of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from cachepolicies.calibration import CalibrationSamples, calibrate
from cachepolicies.contracts.adapter import Adapter, Blocks, OutputOf
from cachepolicies.profiles.schema import Profile
from cachepolicies.reference.gaussian_mixture import FlowMatching, GaussianMixtureDenoiser
from cachepolicies.schedulers.flow_euler import FlowEuler

SHAPE = (2, 3, 4)
"""Of one sample of the denoisers here."""

HORIZON = 1000.0
"""Their largest t."""

WIDTH = 8
"""Channels inside `BlockNetwork`."""

Form: TypeAlias = Literal["tensor", "tuple", "object"]
"""What a denoiser returns."""


@dataclass
class Sampled:
    """An output with the prediction in ``sample``, as diffusers' models return it."""

    sample: Tensor


def mixture(seed: int = 0) -> GaussianMixtureDenoiser:
    """Return the exact velocity of a mixture of three Gaussians under flow matching, t from 1000 to 0."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixtureDenoiser(
        means=torch.randn(3, *SHAPE, generator=generator),
        variances=torch.tensor([0.1, 0.2, 0.4]),
        weights=torch.tensor([0.5, 0.3, 0.2]),
        schedule=FlowMatching(HORIZON),
        prediction="velocity",
    )


class LinearDenoiser:
    """``f(x, t) = x * (0.5 + t / 1000)``: linear in x, and as cheap as it gets."""

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the output ``(B, ...)`` in the dtype of x."""
        level = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        return (x.double() * (0.5 + level / HORIZON)).to(x.dtype)


def shaped(denoiser: Callable[..., Tensor], form: Form) -> Callable[..., Any]:
    """Return a denoiser whose output has another form."""

    def f(x: Tensor, t: Tensor | float) -> Any:
        return _in_form(denoiser(x, t), form)

    return denoiser if form == "tensor" else f


def _in_form(output: Tensor, form: Form) -> Any:
    return {"tensor": output, "tuple": (output, "more"), "object": Sampled(output)}[form]


class _Mix(nn.Module):
    """A block of one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states: Tensor, emb: Tensor) -> Tensor:
        mixed = hidden_states + 0.2 * hidden_states.mean(dim=1, keepdim=True)
        seen: Tensor = hidden_states + torch.tanh(self.linear(self.norm(mixed) * (1 + emb[:, None])))
        return seen


class _Joint(nn.Module):
    """A block of two streams; returns the words first."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, words: Tensor, hidden_states: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        seen = hidden_states * (1 + emb[:, None]) + words.mean(dim=1, keepdim=True)
        told = words + hidden_states.mean(dim=1, keepdim=True)
        return words + torch.tanh(self.text(told)), hidden_states + torch.tanh(self.image(seen))


class BlockNetwork(nn.Module):
    """A network with an embedding, a stack of three blocks and a head; `adapter_of_blocks` describes it.

    ``forward(x, t)`` takes ``(B, 2, 3, 4)`` and t from 1000 to 0. With two streams, words go through the stack beside
    the image, and the head reads both.
    """

    def __init__(self, *, streams: int = 1, form: Form = "tensor", seed: int = 0) -> None:
        """Make it, with weights by seed.

        Args:
            streams: 1 or 2.
            form: what it returns.
            seed: of the weights.
        """
        super().__init__()
        self.form, self.streams = form, streams
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed, self.time_embed = nn.Linear(SHAPE[0], WIDTH), nn.Linear(2, WIDTH)
            self.word = nn.Parameter(torch.randn(2, WIDTH))
            self.blocks = nn.ModuleList([_Joint() if streams > 1 else _Mix() for _ in range(3)])
            self.head = nn.Linear(WIDTH, SHAPE[0])
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor | float) -> Any:
        """Return the output ``(B, 2, 3, 4)`` in the network's form."""
        level = torch.as_tensor(t, dtype=torch.float64).reshape(-1).expand(x.shape[0]) / HORIZON
        emb = self.time_embed(torch.stack([level, level.square()], dim=1).to(x.dtype))
        image = self.embed(x.flatten(2).transpose(1, 2))
        words = self.word.expand(x.shape[0], -1, -1) + 0.1 * image.mean(dim=1, keepdim=True)
        for block in self.blocks:
            if self.streams > 1:
                words, image = block(words, image, emb)
            else:
                image = block(image, emb)
        if self.streams > 1:
            image = image + words.mean(dim=1, keepdim=True)
        out = self.head(image * (1 + emb[:, None])).transpose(1, 2).reshape(x.shape)
        return _in_form(out, self.form)


def _modulated(block: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    value: Tensor = arguments["hidden_states"] * (1 + arguments["emb"][:, None])
    return value


def adapter_of_blocks(streams: int = 1) -> Adapter:
    """Return the adapter of `BlockNetwork`."""
    joint = streams > 1
    return Adapter(
        "BlockNetwork",
        stack=(Blocks("blocks", ("words", "hidden_states") if joint else "hidden_states"),),
        streams=("hidden_states", "words") if joint else ("hidden_states",),
        signals={"modulated_input": _modulated, "timestep_embedding": OutputOf("time_embed")},
        rows=("x", "t"),
    )


@functools.cache
def calibrated_profile() -> Profile:
    """Return what calibration measures of `mixture`: every curve and table that it knows of; made once."""
    samples = CalibrationSamples.from_seeds(range(3), SHAPE)
    return calibrate(mixture(), FlowEuler(), samples, num_steps=12, progress=False, name="calibrated")
