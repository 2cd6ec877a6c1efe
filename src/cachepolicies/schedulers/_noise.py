"""The generators of a stochastic sampler, and normal noise drawn from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cachepolicies.base.errors import InputError

Generators = torch.Generator | list[torch.Generator] | None
"""``None`` for the global one, one generator for the batch, or one for each sample."""


def as_generators(generator: torch.Generator | Sequence[torch.Generator] | None) -> Generators:
    """Return ``None``, the generator, or the sequence as a list.

    Raises:
        InputError: it is none of them.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, Sequence) and generator and all(isinstance(one, torch.Generator) for one in generator):
        return list(generator)
    raise InputError(
        f"generator is {generator!r}; give a torch.Generator, a non-empty list with one torch.Generator for each "
        "sample of the batch, or None"
    )


def check_one_per_sample(generators: Generators, batch: int) -> None:
    """Check that a list of generators has one for each of ``batch`` samples.

    Raises:
        InputError: the list has another length.
    """
    if isinstance(generators, list) and len(generators) != batch:
        raise InputError(
            f"{len(generators)} generators for a batch of {batch}; give one generator for each sample, "
            "or a single one for the whole batch"
        )


def standard_normal(like: Tensor, generators: Generators) -> Tensor:
    """Draw standard normal noise with shape ``(B, ...)``, dtype and device of ``like``.

    With one generator a sample, row i is drawn as ``(1, ...)`` from generator i alone, so that it does not depend on
    the rest of the batch. A generator draws on its own device and the result is moved.

    Raises:
        InputError: the number of generators is not B.
    """
    if generators is None:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    check_one_per_sample(generators, like.shape[0])
    shape = (1, *like.shape[1:]) if isinstance(generators, list) else tuple(like.shape)
    sources = generators if isinstance(generators, list) else [generators]
    rows = [torch.randn(shape, generator=one, dtype=like.dtype, device=one.device) for one in sources]
    return torch.cat(rows).to(like.device)
