"""Policies that decide once a call and are told what flows at every place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cachepolicies import CachedDenoiser, CachePolicy, Decision, NeedsError, PolicyError, Reason, load_profile, sample
from cachepolicies.policies.limits import Limits
from cachepolicies.reference.video_dit import load_video_dit


class Why(Reason):
    """Why it evaluates or reuses."""

    SECOND = "every second step"


class Sees(CachePolicy):
    """Reuses at every second step; its state is what it was told."""

    name = "sees"
    knob = "unused"
    unused = 1.0

    def start(self, run: Any) -> tuple[Any, ...]:
        """Return nothing."""
        return ()

    def decide(self, step: Any, state: Any) -> Decision:
        """Reuse at odd steps."""
        return Decision.same(bool(step.index % 2), Why.SECOND, step.run.decisions)

    def with_knob(self, value: float) -> Sees:
        """Return itself."""
        return self

    def observe(self, step: Any, decision: Decision, output: Tensor, state: Any) -> tuple[Any, ...]:
        """Note the call."""
        return (*state, (step.index, "call", decision.reuse))

    def observe_place(self, step: Any, place: str, decision: Decision, output: Tensor, state: Any) -> tuple[Any, ...]:
        """Note the place, and keep all of it where the test can see it."""
        SEEN[:] = [*state, (step.index, place, decision.reuse)]
        return tuple(SEEN)


SEEN: list[Any] = []


def inputs() -> dict[str, Any]:
    """Return the conditioning."""
    return {"encoder_hidden_states": torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("limits", [None, Limits(max_reuse=3)])
def test_every_place_is_told_once_a_step_and_after_the_call(limits):
    network = load_video_dit()
    denoiser = CachedDenoiser(network, Sees(), site="mlp", limits=limits)
    noise = torch.randn(1, 4, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    sample(denoiser, "flow-euler", noise, num_steps=6, return_dict=False, **inputs())
    places = denoiser.resolved_site.places
    assert len(places) == 4
    wanted = []
    for step in range(6):
        reuse = (bool(step % 2),)
        wanted += [(step, "call", reuse), *((step, place, reuse) for place in places)]
    # The call is told at the first place, before that place is.
    assert wanted == SEEN


def test_of_several_branches_the_first_one_is_told():
    network = load_video_dit()
    denoiser = CachedDenoiser(network, Sees(), site="mlp")
    timesteps = [1000.0 - 100.0 * step for step in range(6)]
    x = torch.randn(1, 4, 8, 12, 12, generator=torch.Generator().manual_seed(1))
    with denoiser.run(timesteps=timesteps):
        for t in timesteps:
            for branch in ("cond", "uncond"):
                denoiser(x, torch.tensor([t]), branch=branch, **inputs())
    assert len(SEEN) == 6 * 5


def test_a_budget_is_not_solved_for_it():
    with pytest.raises(NeedsError, match="looks at what flows at every place, which a profile does not tell"):
        CachedDenoiser(load_video_dit(), Sees(), site="mlp", budget=0.5, profile=load_profile("video-dit"))


def test_place_by_place_there_is_observe_for_it():
    class Both(Sees):
        grain = "place"

    with pytest.raises(PolicyError, match="decides place by place, so that observe is told of every place"):
        CachedDenoiser(load_video_dit(), Both(), site="mlp")
