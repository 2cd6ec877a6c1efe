"""What a substitute recalls: the last values that flowed on from its place, evaluated or stood in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import CachedDenoiser, Context, PolicyError, Refresh, Substitute
from cachepolicies.testing import check_substitute
from cachepolicies.testing.failures import PropertyError
from scripted import Scripted

LEVELS = tuple(1000.0 - 100.0 * k for k in range(8))


@frozen(eq=False)
class Spy(Substitute):
    """Half of the newest value; it keeps what it was told."""

    name: ClassVar[str] = "spy"
    history: ClassVar[int] = 1

    recalls: int = 3
    told: list[Context] = field(factory=list, repr=False)

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return half of what flowed on last, or of the last refresh where nothing is recalled."""
        self.told.append(context)
        return (context.passed[0] if context.passed else history[0].output) / 2


def curve(x: Tensor, t: Tensor | float) -> Tensor:
    """An output that depends on the row and on t."""
    return x + float(t) / 1000


@settings(max_examples=20, deadline=None)
@given(
    pattern=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=7, max_size=7).filter(
        lambda p: any(map(any, p))
    ),
    recalls=st.integers(1, 4),
)
def test_it_is_told_what_was_handed_out(pattern, recalls):
    """In every row, whether that was evaluated or stood in, of its own branch, as many values as it asks for."""
    spy = Spy(recalls)
    script = {t: list(reuse) for t, reuse in zip(LEVELS, [(False, False), *pattern], strict=True)}
    denoiser = CachedDenoiser(curve, Scripted(script), substitute=spy)
    handed: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    with denoiser.run(timesteps=LEVELS):
        for k, t in enumerate(LEVELS):
            for branch, x in (("cond", torch.ones(2, 3)), ("uncond", -torch.ones(2, 3))):
                asked = len(spy.told)
                output = denoiser(x + k, t, branch=branch)
                for context in spy.told[asked:]:
                    assert context.branch == branch
                    assert context.visited == LEVELS[:k][::-1]
                    assert len(context.passed) == min(recalls, k)
                    for mine, theirs in zip(context.passed, handed[branch][::-1], strict=False):
                        assert torch.equal(mine, theirs)
                handed[branch].append(output.clone())
                output.zero_()  # a sampler may do so
    assert spy.told


def test_of_two_values_at_one_level_the_last_counts():
    """As Heun's second evaluation and the first of the next step are."""
    spy = Spy()
    denoiser = CachedDenoiser(curve, Scripted({t: [k == 2] for k, t in enumerate(LEVELS)}), substitute=spy)
    with denoiser.run(timesteps=LEVELS):
        for k, level in enumerate((0, 1, 1, *range(2, len(LEVELS)))):
            denoiser(torch.full((1, 2), float(k)), LEVELS[level])
    (context,) = spy.told
    assert context.visited == (LEVELS[1], LEVELS[0])
    assert torch.equal(context.passed[0], curve(torch.full((1, 2), 2.0), LEVELS[1]))


def test_what_nobody_recalls_is_not_kept():
    """Nor told."""
    spy = Spy(0)
    denoiser = CachedDenoiser(curve, Scripted({t: [k > 0] for k, t in enumerate(LEVELS)}), substitute=spy)
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            denoiser(torch.ones(1, 2), t)
    assert spy.told
    assert all(context.passed == context.visited == () for context in spy.told)


def test_a_latent_of_another_size_begins_anew():
    """Another run; nothing of the one before is told."""
    spy = Spy()
    denoiser = CachedDenoiser(curve, Scripted({t: [k > 0] for k, t in enumerate(LEVELS)}), substitute=spy)
    for size in (2, 5):
        with denoiser.run(timesteps=LEVELS):
            for t in LEVELS:
                denoiser(torch.ones(1, size), t)
    assert {value.shape for context in spy.told[len(LEVELS) - 1 :] for value in context.passed} == {(1, 5)}
    assert spy.told[len(LEVELS) - 1].visited == LEVELS[:1]


@frozen
class Uncountable(Substitute):
    """Recalls what is no number."""

    name: ClassVar[str] = "uncountable"
    history: ClassVar[int] = 1
    recalls: ClassVar[float] = 1.5  # type: ignore[assignment]

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Hold."""
        return history[0].output


def test_the_kit_refuses_what_is_no_number():
    with pytest.raises((PropertyError, PolicyError), match=r"recalls is 1\.5"):
        check_substitute(Uncountable())
