"""Whether a network's calls are shared by several processes, as diffusers' context parallelism does."""

from __future__ import annotations

from typing import Any

from cachepolicies.base.foreign import context_parallel_settings


def context_parallel(network: Any) -> int:
    """Return by how many processes the tokens of a call are shared, 1 where it is one process's own."""
    config = context_parallel_settings(network)
    if config is None:
        return 1
    degrees = (getattr(config, name, None) for name in ("ring_degree", "ulysses_degree"))
    ranks = 1
    for degree in degrees:
        ranks *= degree if isinstance(degree, int) and degree > 1 else 1
    return ranks


def why_not_parallel(network: Any, ranks: int) -> str:
    """Return the sentence that refuses a cache on such a network."""
    return (
        f"{type(network).__name__} runs with context parallelism over {ranks} processes (enable_parallelism): each "
        "would see its own part of the latent and decide for itself, and where two decide differently they wait for "
        "each other for ever. Leave the cache off, or parallelise without a cache; policy 'never' may stay"
    )
