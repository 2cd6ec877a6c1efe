"""The policy in a denoiser; its name is registered as if the package were installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cachepolicies import CachedDenoiser, CachePolicy, SettingsError
from cachepolicies.testing import registered
from cachepolicies_example import EveryOther, plugin
from cachepolicies_example.every_other import Why

TIMESTEPS = [1.0, 0.8, 0.6, 0.4, 0.2]


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """Register the plugin's name."""
    with registered(plugin, "cachepolicies-example"):
        yield


class Counting:
    """A denoiser that counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``t * x``."""
        self.calls += 1
        return t * x


def sample(denoiser: CachedDenoiser) -> list[float]:
    """Return the first value of every output of a run."""
    outputs = []
    with denoiser.run(timesteps=TIMESTEPS):
        for t in TIMESTEPS:
            outputs.append(denoiser(torch.ones(2, 3), torch.tensor(t))[0, 0].item())
    return outputs


def test_it_keeps_the_contract() -> None:
    """It is a policy, and gives its reasons as members of its own enumeration."""
    assert isinstance(EveryOther(), CachePolicy)
    denoiser = CachedDenoiser(Counting(), policy=EveryOther(start_after=0.4))
    sample(denoiser)
    assert set(denoiser.trace.reasons()) == set(Why)


def test_every_other_step_is_evaluated() -> None:
    """Steps 0, 2 and 4 of five are evaluated; 1 and 3 hold what came before."""
    model = Counting()
    assert sample(CachedDenoiser(model, policy=EveryOther())) == pytest.approx([1.0, 1.0, 0.6, 0.6, 0.2])
    assert model.calls == 3


def test_the_start_of_the_run_is_evaluated() -> None:
    """Three steps of five belong to the start; then one is reused and one evaluated."""
    model = Counting()
    sample(CachedDenoiser(model, policy=EveryOther(start_after=0.6)))
    assert model.calls == 4


def test_it_is_found_by_name() -> None:
    """The entry point makes the name known."""
    model = Counting()
    sample(CachedDenoiser(model, policy="every-other:start_after=0.6"))
    assert model.calls == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("every-other:start_after=2", "start_after=2"),
        ("every-other:start_after=soon", "start_after='soon'"),
        ("every-other:start=0.5", "did you mean 'start_after'"),
    ],
)
def test_wrong_settings_are_refused(spec: str, message: str) -> None:
    """The message names the setting and the value."""
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(Counting(), policy=spec)
