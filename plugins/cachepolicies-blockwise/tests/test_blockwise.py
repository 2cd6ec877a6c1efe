"""The site, the policy and the signal; their names are registered as if the package were installed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cachepolicies import CachedDenoiser, NeedsError, enable
from cachepolicies.comparison import Candidate, Inputs, Workload, compare
from cachepolicies.policies import TeaCache
from cachepolicies.testing import check_policy, check_signal, check_site, registered
from cachepolicies_blockwise import AlternateBlocks, EveryBlock, LatentRms, plugin

TIMESTEPS = tuple(1000.0 - 100.0 * k for k in range(10))


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's names."""
    with registered(plugin, "cachepolicies-blockwise"):
        yield


class Block(nn.Module):
    """One layer with a residual; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Add what the layer says."""
        self.calls += 1
        return hidden_states + torch.tanh(self.layer(hidden_states))


class Network(nn.Module):
    """Four blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(6, 6), nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Any) -> Tensor:
        """Return a velocity."""
        level = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 1000
        hidden = self.embed(x) + level
        for block in self.blocks:
            hidden = block(hidden)
        output: Tensor = self.head(hidden)
        return output


def by_hand(network: Network, x: Tensor) -> list[Tensor]:
    """Return the latents of a run in which blocks 1 and 3 repeat their last output at every second step."""
    kept: dict[int, Tensor] = {}
    latents = []
    for number, (t, after) in enumerate(pairwise((*TIMESTEPS, 0.0))):
        hidden = network.embed(x) + t / 1000
        for place, block in enumerate(network.blocks):
            if place % 2 == 0 or number % 2 == 0:
                kept[place] = block(hidden)
            hidden = kept[place]
        x = x + (after - t) / 1000 * network.head(hidden)
        latents.append(x)
    return latents


def sampled(denoiser: Any, x: Tensor) -> list[Tensor]:
    """Return the latents of a run."""
    latents = []
    for t, after in pairwise((*TIMESTEPS, 0.0)):
        x = x + (after - t) / 1000 * denoiser(x, t)
        latents.append(x)
    return latents


def test_the_contracts() -> None:
    """One line each."""
    check_signal(LatentRms())
    check_site(EveryBlock())
    check_policy(AlternateBlocks())


def test_the_wrapper_holds_every_second_block_at_every_second_step() -> None:
    """As by hand, counted at the blocks, and each decision in the trace."""
    network, x = Network(), torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    wanted = by_hand(network, x)
    for block in network.blocks:
        block.calls = 0  # type: ignore[assignment]
    denoiser = CachedDenoiser(network, AlternateBlocks(), site=EveryBlock())
    with denoiser.run(timesteps=TIMESTEPS) as run:
        found = sampled(denoiser, x)
    assert all(torch.equal(p, q) for p, q in zip(found, wanted, strict=True))
    assert [block.calls for block in network.blocks] == [10, 5, 10, 5]
    assert run.trace.places == tuple(f"blocks.{i}" for i in range(4))
    assert len(run.trace.records) == 40
    decided = {place: [r.evaluated for r in run.trace.records if r.place == place] for place in run.trace.places}
    assert decided["blocks.0"] == [(True,)] * 10
    assert decided["blocks.1"] == [(True,), (False,)] * 5
    assert "blocks.3" in str(run.trace)
    assert run.trace.nfe == 7.5
    assert run.trace.work == pytest.approx(1 - 0.5 * 2 / 6)  # two of six equal layers, at half of the steps
    assert any("decide as one" in note for note in run.trace.notes)


def test_in_place_is_the_same() -> None:
    """The enabled module gives what the wrapper gives, and is left as it was."""
    network, x = Network(), torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    wanted = by_hand(network, x)
    bare = sampled(network, x)
    with enable(network, AlternateBlocks(), site=EveryBlock()) as enabled, enabled.run(TIMESTEPS) as run:
        found = sampled(network, x)
        assert run.trace.nfe == 7.5
    assert all(torch.equal(p, q) for p, q in zip(found, wanted, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(sampled(network, x), bare, strict=True))


def test_it_is_compared() -> None:
    """The count at the blocks agrees with the trace, and the table says the work."""

    def inputs(seeds: Any) -> Inputs:
        noise = [torch.randn(1, 6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return Inputs(torch.cat(noise))

    def decode(samples: Tensor) -> Tensor:
        return samples.sigmoid().reshape(-1, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)

    workload = Workload(
        "blocks", Network(), "flow-euler", num_steps=10, latent_shape=(6,), inputs=inputs, decode=decode
    )
    candidate = Candidate("alternate", AlternateBlocks(), site=EveryBlock(), baselines=False)
    row = compare(workload, [candidate], seeds=range(4), progress=False).rows()[1]
    assert row["nfe"] == 7.5
    assert row["work"] == pytest.approx(1 - 0.5 * 2 / 6)


def test_the_signal_is_for_any_policy() -> None:
    """The policy may wait for it, and so may another; without the plugin's names it is refused."""
    network, x = Network(), torch.randn(2, 6)
    never = CachedDenoiser(network, AlternateBlocks(below=0.0), site=EveryBlock(), limits=None)
    with pytest.warns(UserWarning, match="nothing was reused"), never.run(timesteps=TIMESTEPS):
        sampled(never, x)
    assert never.cache_ratio == 0
    watched = TeaCache(threshold=0.5, coefficients=(1.0, 0.0), signal="latent-rms")
    denoiser = CachedDenoiser(network, watched)
    with denoiser.run(timesteps=TIMESTEPS):
        sampled(denoiser, x)
    assert denoiser.cache_ratio > 0
    with pytest.raises(NeedsError, match="needs the signal latent-size"):
        CachedDenoiser(network, TeaCache(threshold=0.5, coefficients=(1.0, 0.0), signal="latent-size"))
