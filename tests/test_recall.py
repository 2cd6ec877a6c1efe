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
from cachepolicies.substitutes import ByPlace
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
    wants_input: bool = False
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
    wants_input=st.booleans(),
)
def test_it_is_told_what_was_handed_out(pattern, recalls, wants_input):
    """In every row, whether that was evaluated or stood in, of its own branch, as many values as it asks for.

    With what had gone in, if it looks at that.
    """
    spy = Spy(recalls, wants_input)
    script = {t: list(reuse) for t, reuse in zip(LEVELS, [(False, False), *pattern], strict=True)}
    denoiser = CachedDenoiser(curve, Scripted(script), substitute=spy)
    handed: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    given: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
    with denoiser.run(timesteps=LEVELS):
        for k, t in enumerate(LEVELS):
            for branch, x in (("cond", torch.ones(2, 3)), ("uncond", -torch.ones(2, 3))):
                asked, entering = len(spy.told), x + k
                output = denoiser(entering, t, branch=branch)
                for context in spy.told[asked:]:
                    assert context.branch == branch
                    assert context.visited == LEVELS[:k][::-1]
                    assert len(context.passed) == min(recalls, k)
                    for mine, theirs in zip(context.passed, handed[branch][::-1], strict=False):
                        assert torch.equal(mine, theirs)
                    assert len(context.entered) == (len(context.passed) if wants_input else 0)
                    for mine, theirs in zip(context.entered, given[branch][::-1], strict=False):
                        assert torch.equal(mine, theirs)
                handed[branch].append(output.clone())
                given[branch].append(entering.clone())
                for tensor in (output, entering):
                    tensor.zero_()  # a sampler may do so
    assert spy.told


def test_of_two_values_at_one_level_the_last_counts():
    """As Heun's second evaluation and the first of the next step are."""
    spy = Spy(wants_input=True)
    denoiser = CachedDenoiser(curve, Scripted({t: [k == 2] for k, t in enumerate(LEVELS)}), substitute=spy)
    with denoiser.run(timesteps=LEVELS):
        for k, level in enumerate((0, 1, 1, *range(2, len(LEVELS)))):
            denoiser(torch.full((1, 2), float(k)), LEVELS[level])
    (context,) = spy.told
    assert context.visited == (LEVELS[1], LEVELS[0])
    assert torch.equal(context.passed[0], curve(torch.full((1, 2), 2.0), LEVELS[1]))
    assert [entered[0, 0].item() for entered in context.entered] == [2.0, 0.0]


def test_what_nobody_recalls_is_not_kept():
    """Nor told."""
    spy = Spy(0)
    denoiser = CachedDenoiser(curve, Scripted({t: [k > 0] for k, t in enumerate(LEVELS)}), substitute=spy)
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            denoiser(torch.ones(1, 2), t)
    assert spy.told
    assert all(context.passed == context.visited == context.entered == () for context in spy.told)


def test_a_latent_of_another_size_begins_anew():
    """Another run; nothing of the one before is told."""
    spy = Spy(wants_input=True)
    denoiser = CachedDenoiser(curve, Scripted({t: [k > 0] for k, t in enumerate(LEVELS)}), substitute=spy)
    for size in (2, 5):
        with denoiser.run(timesteps=LEVELS):
            for t in LEVELS:
                denoiser(torch.ones(1, size), t)
    assert {value.shape for context in spy.told[len(LEVELS) - 1 :] for value in context.passed} == {(1, 5)}
    assert spy.told[len(LEVELS) - 1].visited == LEVELS[:1]


@frozen
class Last(Spy):
    """The last value itself, or what had gone in."""

    name: ClassVar[str] = "last"

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        """Return memory that is remembered."""
        return context.entered[0] if context.index == 3 else context.passed[0]


def test_a_sampler_does_not_write_on_what_is_recalled():
    """Where a substitute returns it as it is."""
    denoiser = CachedDenoiser(
        curve, Scripted({t: [k > 0] for k, t in enumerate(LEVELS)}), substitute=Last(wants_input=True)
    )
    with denoiser.run(timesteps=LEVELS):
        found = []
        for k, t in enumerate(LEVELS[:6]):
            output = denoiser(torch.full((1, 2), float(k)), t)
            found.append(output[0, 0].item())
            output.fill_(-1.0)
    assert found == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


@frozen(eq=False)
class Keeps(Spy):
    """One that looks at other branches."""

    name: ClassVar[str] = "keeps"
    wants_branches: ClassVar[bool] = True
    keeps_branches: ClassVar[bool] = True


def test_by_place_recalls_what_its_substitutes_do():
    """And keeps the branches that they look at."""
    inside = Spy(2)
    denoiser = CachedDenoiser(
        curve, Scripted({t: [k > 2] for k, t in enumerate(LEVELS)}), substitute=ByPlace(output=inside)
    )
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS[:4]:
            denoiser(torch.ones(1, 2), t)
    (context,) = inside.told
    assert [float(value[0, 0]) for value in context.passed] == pytest.approx([1.8, 1.9])
    assert not ByPlace(output=inside).keeps_branches
    assert ByPlace(inside=Keeps()).keeps_branches


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
