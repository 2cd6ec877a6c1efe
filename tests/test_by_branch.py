"""Policies that decide for every guidance branch apart, and substitutes that look at what other branches returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachepolicies import CachedDenoiser, Context, Decision, InputError, PolicyError, Refresh, Substitute
from cachepolicies.base.layout import Layout
from cachepolicies.policies.limits import Limited, Limits
from denoisers import SHAPE
from scripted import Scripted, Why
from tiny_models import TINY

LEVELS = (900.0, 800.0, 700.0, 600.0, 500.0, 400.0)
VISIBLE = [f"cachepolicies.engine.{module}" for module in ("memory", "record", "stand_in")]
"""Where the engine asks whether the host sees a tensor."""


@frozen
class Apart(Scripted):
    """Reuse what a script says, of one branch only; it counts the states that it makes.

    Attributes:
        branch: the one that is reused.
    """

    branch: str = "uncond"
    begun: list[int] = field(factory=list)

    @property
    def by_branch(self) -> bool:
        return True

    @property
    def substitute(self) -> Others:
        return Others()

    def start(self, run: Any) -> None:
        self.begun.append(run.decisions)

    def decide(self, step: Any, state: None) -> Decision:
        wanted = super().decide(step, state).reuse
        reuse = tuple(one and branch == self.branch for one, branch in zip(wanted, step.branches, strict=True))
        return Decision(reuse, (Why.SCRIPT,) * len(reuse))


@frozen
class Others(Substitute):
    """The other branch now, and how far this one was from it at the last evaluation; notes what it is told."""

    name: ClassVar[str] = "others"
    history: ClassVar[int] = 1
    wants_branches: ClassVar[bool] = True
    keeps_branches: ClassVar[bool] = True

    source: str | None = None
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor], list[float]]] = field(factory=list)

    def predict(self, context: Context, history: Sequence[Refresh]) -> Tensor:
        kept = history[0]
        self.seen.append((dict(context.branches), dict(kept.branches), list(kept.t)))
        name = next(iter(context.branches)) if self.source is None else self.source
        return context.branches[name] + kept.output - kept.branches[name]


def model(x: Tensor, t: float, scale: Tensor | float = 1.0) -> Tensor:
    """An output that depends on the row, t and a condition."""
    return torch.sin(x * scale + t / 300.0)


def noise(rows: int = 2) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_the_copies_of_a_batch_that_decide_apart_are_its_rows(samples: int, copies: int, per_sample: bool) -> None:
    layout = Layout(samples * copies, copies, per_sample, apart=True)
    assert layout.decisions == (samples * copies if per_sample else copies)
    assert sorted(row for d in range(layout.decisions) for row in layout.rows_of(d)) == list(range(layout.rows))
    for d, name in enumerate(layout.branches_of("any")):
        assert {f"copy {1 + row // samples}" for row in layout.rows_of(d)} == {name}
    values = torch.arange(layout.rows).float()
    for number, (name, found) in enumerate(layout.by_copy(values).items()):
        assert name == f"copy {number + 1}"
        assert found.tolist() == [number * samples + row % samples for row in range(layout.rows)]
    together = Layout(samples * copies, copies, per_sample)
    assert together.branches_of("any") == ("any",) * together.decisions


@pytest.mark.parametrize("seen_by_host", [True, False])
@pytest.mark.parametrize("branches", ["shared", "independent"])
def test_a_branch_is_left_out_where_another_is_evaluated(branches, seen_by_host, monkeypatch):
    """Every branch has a state of its own; what the other returned is kept with the refresh, and belongs to its t."""
    if not seen_by_host:
        for module in VISIBLE:
            monkeypatch.setattr(f"{module}.visible", lambda tensor: False)
    policy = Apart({800.0: True, 700.0: True, 500.0: True})
    denoiser = CachedDenoiser(model, policy, branches=branches)
    assert isinstance(denoiser.substitute, Others)
    x, found = noise(), {}
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            cond = denoiser(x, t, 2.0, branch="cond")
            assert torch.equal(cond, model(x, t, 2.0))
            found[t] = denoiser(x, t, 0.5, branch="uncond")
    assert policy.begun == [2, 2]
    evaluated = {(record.t, record.branch): record.evaluated for record in denoiser.trace.records}
    for t in LEVELS:
        left_out = policy.script.get(t, False)
        assert evaluated[t, "uncond"] == (not left_out,) * 2
        last = max(level for level in LEVELS if level <= t) if not left_out else {700.0: 900.0}.get(t, t + 100.0)
        expected = model(x, t, 2.0) + model(x, last, 0.5) - model(x, last, 2.0) if left_out else model(x, t, 0.5)
        torch.testing.assert_close(found[t], expected)


@pytest.mark.parametrize("seen_by_host", [True, False])
def test_one_half_of_a_doubled_batch_is_evaluated(seen_by_host, monkeypatch):
    """And only for the samples that say so: one call of the model with the rows that are wanted."""
    if not seen_by_host:
        for module in VISIBLE:
            monkeypatch.setattr(f"{module}.visible", lambda tensor: False)
    rows: list[int] = []

    def counted(x: Tensor, t: float, scale: Tensor) -> Tensor:
        rows.append(len(x))
        return model(x, t, scale)

    # copy 1 of both samples; then of the second only
    script: dict[float, Any] = {800.0: True, 700.0: (False, True, False, False), 600.0: True}
    substitute = Others("copy 2")
    denoiser = CachedDenoiser(counted, Apart(script, branch="copy 1"), cfg="batched", substitute=substitute)
    x = noise()
    scale = torch.tensor([0.5, 0.5, 2.0, 2.0])[:, None]
    scale = scale.reshape(-1, *[1] * (x.ndim - 1))
    found = {}
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            found[t] = denoiser(torch.cat([x, x]), t, scale)
    assert rows == [4, 2, 3, 2, 4, 4]
    last = {800.0: (900.0, 900.0), 700.0: (None, 900.0), 600.0: (700.0, 900.0)}
    for t in LEVELS:
        bare = model(torch.cat([x, x]), t, scale)
        assert torch.equal(found[t][2:], bare[2:])
        for row, then in enumerate(last.get(t, (None, None))):
            expected = bare[row]
            if then is not None:
                at = model(torch.cat([x, x]), then, scale)
                expected = bare[row + 2] + at[row] - at[row + 2]
            torch.testing.assert_close(found[t][row], expected)
    now, _, _ = substitute.seen[0]
    assert set(now) == {"copy 2"}
    assert torch.equal(now["copy 2"][:2], now["copy 2"][2:])
    assert denoiser.nfe == 6 - 5 / 4


def test_all_rows_of_a_copy_decide_as_one_where_samples_do() -> None:
    policy = Apart({800.0: True}, branch="copy 1")
    denoiser = CachedDenoiser(model, policy, cfg="batched", per_sample=False)
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            denoiser(torch.cat([noise(3), noise(3)]), t)
    assert policy.begun == [2]
    assert [record.evaluated for record in denoiser.trace.records[:3]] == [(True, True), (False, True), (True, True)]


def test_a_branch_that_was_not_called_is_not_known() -> None:
    """What a branch returned that comes at some steps only is ``nan`` for rows that were evaluated at others."""
    substitute = Others("cond")
    script = {800.0: (True, False), 700.0: (True, True)}
    denoiser = CachedDenoiser(model, Apart(script), substitute=substitute)
    x = noise()
    with denoiser.run(timesteps=LEVELS):
        for t in LEVELS:
            denoiser(x, t, 2.0, branch="cond")
            if t == 800.0:
                denoiser(x, t, 3.0, branch="third")
            denoiser(x, t, 0.5, branch="uncond")
    _, kept, levels = substitute.seen[1]
    assert levels == [900.0, 800.0]
    assert torch.isnan(kept["third"][0]).all()
    assert torch.equal(kept["third"][1], model(x, 800.0, 3.0)[1])
    assert torch.equal(kept["cond"], torch.stack([model(x, 900.0, 2.0)[0], model(x, 800.0, 2.0)[1]]))


def test_what_does_not_fit_is_refused() -> None:
    """A site that cannot evaluate some rows; rows that cannot be told; what is kept and not wanted."""

    @frozen
    class Keeps(Others):
        wants_branches: ClassVar[bool] = False

    with pytest.raises(PolicyError, match=r"'others' keeps what other branches returned .* let wants_branches be True"):
        CachedDenoiser(model, Apart(), substitute=Keeps())
    several = CachedDenoiser(TINY["FluxTransformer2DModel"].build(), Apart(), site="attention", cfg="batched")
    with pytest.raises(InputError, match="policy 'scripted' decides for every guidance branch apart, and 2 of them"):
        several(hidden_states=torch.zeros(2, 4, 4), timestep=torch.ones(2))
    odd = CachedDenoiser(lambda x, t: (x, torch.zeros(3)), Apart(), cfg="batched")
    with pytest.raises(InputError, match=r"rows cannot be told apart: the denoiser returns further tensors"):
        odd(torch.zeros(2, 3), 900.0)


def test_the_substitute_of_a_policy_is_taken_where_nobody_names_one() -> None:
    """Within limits too; a name goes before it."""
    assert CachedDenoiser(model, Apart()).substitute == Others()
    assert CachedDenoiser(model, Limited(Apart(), Limits(max_reuse=1))).substitute == Others()
    limited = CachedDenoiser(model, Apart(), limits=Limits(max_reuse=1))
    assert limited.substitute == Others()
    assert limited.policy.by_branch
    assert CachedDenoiser(model, Apart(), substitute="linear:time=t").substitute.name == "linear"
    assert CachedDenoiser(model, Scripted()).substitute.name == "hold"
    assert not Scripted().by_branch


def test_the_step_of_a_noise_level() -> None:
    """As a run finds it: a level between two belongs to the earlier one."""
    context = Context(650.0, timesteps=LEVELS)
    assert [context.index_of(t) for t in (900.0, 899.0, 800.0, 750.0, 400.0, 10.0)] == [0, 0, 1, 1, 5, 5]
    rising = Context(650.0, timesteps=LEVELS[::-1])
    assert [rising.index_of(t) for t in (400.0, 450.0, 500.0, 900.0)] == [0, 0, 1, 5]
    assert Context(650.0).index_of(500.0) is None
