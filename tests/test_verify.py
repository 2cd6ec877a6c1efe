"""Policies that have places verified: what they are told, what it costs, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, field, frozen
from torch import Tensor

from cachepolicies import CachedDenoiser, CachePolicy, Decision, NeedsError, PolicyError, Reason, load_profile
from cachepolicies.comparison import Candidate, Inputs, Workload, compare
from cachepolicies.policies.limits import Limits
from cachepolicies.reference.video_dit import load_video_dit

TIMESTEPS = tuple(1000.0 - 150.0 * step for step in range(6))
ENDS = "blocks[:-1]+blocks[-1:]"


class Why(Reason):
    """Why it evaluates or reuses."""

    ODD = "reused at odd steps"


@frozen(eq=False)
class Verifying(CachePolicy):
    """Reuses at odd steps, of several samples the first at step 3 not; counts in its state what was verified.

    Attributes:
        places: to verify at odd steps.
        seen: step, place, what was drafted and computed, and the state.
    """

    name: ClassVar[str] = "verifying"

    places: Any = ()
    seen: list[Any] = field(factory=list)

    def start(self, run: Any) -> int:
        """Return the count."""
        return 0

    def decide(self, step: Any, state: int) -> Decision:
        """Reuse at odd steps."""
        odd = bool(step.index % 2)
        reuse = tuple(odd and not (row == 0 < step.run.decisions - 1 and step.index == 3) for row in _of(step))
        return Decision(reuse, (Why.ODD,) * len(reuse), verify=self.places)

    def verify(self, step: Any, place: str, drafted: Tensor, computed: Tensor, state: int) -> int:
        """Note it, and count."""
        self.seen.append((step.index, place, drafted.clone(), computed.clone(), dict(step.signals), state))
        return state + 1


def _of(step: Any) -> range:
    return range(step.run.decisions)


def latents(rows: int) -> list[Tensor]:
    """Return the latents of a run, and the same every time."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 4, 2, 6, 6, generator=generator) for _ in TIMESTEPS]


def inputs(rows: int) -> dict[str, Any]:
    """Return the conditioning."""
    text = torch.randn(rows, 3, 32, generator=torch.Generator().manual_seed(0))
    return {"encoder_hidden_states": text, "return_dict": False}


@torch.no_grad()
def outputs(network: Any, policy: CachePolicy, site: str, rows: int = 1, **more: Any) -> tuple[list[Tensor], Any]:
    """Return what a run gives, and its trace."""
    denoiser = CachedDenoiser(network, policy, site=site, **more)
    found = []
    with denoiser.run(timesteps=TIMESTEPS) as run:
        for x, t in zip(latents(rows), TIMESTEPS, strict=True):
            found.append(run(x, torch.full((rows,), t), **inputs(rows))[0])
    return found, run.trace


SITES = [
    ("output", "", 1),
    ("output", "", 2),
    ("blocks", "", 1),
    ("blocks", "", 2),
    ("blocks.1", "", 1),
    ("mlp", "blocks.2.ffn", 1),
    (ENDS, "blocks[-1:]", 1),
    (ENDS, "blocks[-1:]", 2),
]


@pytest.mark.parametrize(("site", "place", "rows"), SITES)
def test_it_changes_nothing_but_what_the_policy_knows(site, place, rows):
    """Nor what is drafted from: a line through the last two computed steps stands in."""
    network = load_video_dit()
    plain, trace = outputs(network, Verifying(), site, rows, substitute="linear:time=t")
    policy = Verifying(places=(place,))
    found, checked = outputs(network, policy, site, rows, substitute="linear:time=t")
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert [(r.place, r.evaluated, r.order) for r in checked.records] == [
        (r.place, r.evaluated, r.order) for r in trace.records
    ]
    assert [(step, at, state) for step, at, *_, state in policy.seen] == [(1, place, 0), (3, place, 1), (5, place, 2)]
    assert [(r.index, r.place) for r in checked.records if r.verified] == [(step, place) for step in (1, 3, 5)]
    assert checked.verified_calls == 3
    assert trace.verified_calls == 0
    assert "3 verified" in checked.summary()
    assert "verified" not in trace.summary()
    assert all(r.saved == 0.0 for r in checked.records if r.verified)
    assert checked.work > trace.work
    if site == "output":
        for step, _, drafted, computed, _, _ in policy.seen:
            x, t = latents(rows)[step], torch.full((rows,), TIMESTEPS[step])
            with torch.no_grad():
                bare = network(x, t, **inputs(rows))[0]
            assert torch.equal(drafted, found[step])
            torch.testing.assert_close(computed, bare, atol=1e-5, rtol=1e-4)
            assert step == 3 or not torch.allclose(drafted, computed, atol=1e-3)
            if step == 3 and rows == 2:
                assert torch.equal(drafted[0], computed[0])
                assert not torch.allclose(drafted[1], computed[1], atol=1e-3)


def test_the_rear_is_computed_on_the_drafted_input():
    """By hooks: what the last block returns at a verified step is what the policy is told."""
    network = load_video_dit()
    ran: list[Tensor] = []
    hook = network.get_submodule("blocks.3").register_forward_hook(
        lambda module, args, output: ran.append(output - args[0])
    )

    @frozen(eq=False)
    class Enters(Verifying):
        @property
        def needs(self) -> Any:
            return evolve(super().needs, signals=("entered_streams",))

    policy = Enters(places=("blocks[-1:]",))
    outputs(network, policy, ENDS)
    hook.remove()
    assert len(network.blocks) == 4
    assert len(ran) == 6
    for (step, _, _, computed, signals, _), added in zip(policy.seen, ran[1::2], strict=True):
        assert torch.equal(computed, added)
        assert signals["entered_streams"].shape == computed.shape
        assert step % 2


@pytest.mark.parametrize(("branches", "times"), [("shared", 3), ("independent", 6)])
def test_of_branches_that_share_a_decision_the_first_is_verified(branches, times):
    policy = Verifying(places=("blocks[-1:]",))
    denoiser = CachedDenoiser(load_video_dit(), policy, site=ENDS, branches=branches)
    with denoiser.run(timesteps=TIMESTEPS) as run, torch.no_grad():
        for x, t in zip(latents(1), TIMESTEPS, strict=True):
            for name in ("cond", "uncond"):
                run(x, torch.full((1,), t), branch=name, **inputs(1))
    assert len(policy.seen) == run.trace.verified_calls == times
    verified = [(r.index, r.branch) for r in run.trace.records if r.verified]
    assert verified[:2] == [(1, "cond"), (3, "cond") if times == 3 else (1, "uncond")]


@pytest.mark.parametrize("site", ["output", "mlp", ENDS])
def test_an_audit_of_what_is_verified_evaluates_nothing_further(site):
    network = load_video_dit()
    place = {"output": "", "mlp": "blocks.2.ffn"}.get(site, "blocks[-1:]")
    module = {"output": "blocks.3", "mlp": "blocks.2.ffn"}.get(site, "blocks.3")
    ran: list[int] = []
    hook = network.get_submodule(module).register_forward_hook(lambda *_: ran.append(1))
    _, trace = outputs(network, Verifying(places=(place,)), site, audit=1.0)
    hook.remove()
    assert len(ran) == 6
    checked = [r for r in trace.records if r.verified]
    assert len(checked) == 3
    assert all(r.audit is not None and r.audit.true_error[0] > 0 for r in checked)
    assert trace.audit_calls == sum(r.audit is not None for r in trace.records) - 3


def test_within_limits_it_is_told_too():
    policy = Verifying(places=("",))
    _, trace = outputs(load_video_dit(), policy, "output", limits=Limits(protect_last=1))
    assert [step for step, *_ in policy.seen] == [1, 3]
    assert trace.verified_calls == 2


def test_what_no_policy_may_want_is_named():
    network = load_video_dit()
    with pytest.raises(PolicyError, match=r"returned verify 'output'; it is a tuple of names of places"):
        outputs(network, Verifying(places="output"), "output")
    with pytest.raises(PolicyError, match=r"returned verify \(1,\); it is a tuple of names of places"):
        outputs(network, Verifying(places=(1,)), "output")
    with pytest.raises(PolicyError, match=r"wants 'blocks.1' to be verified.* reached no such place; it reached ''"):
        outputs(network, Verifying(places=("blocks.1",)), "output")

    class Deaf(CachePolicy):
        name = "deaf"

        def decide(self, step: Any, state: Any) -> Decision:
            return evolve(Decision.same(True, Why.ODD, step.run.decisions), verify=("",))

    with pytest.raises(PolicyError, match=r"wants '' to be verified, and has no method `verify`"):
        outputs(network, Deaf(), "output")


def test_a_budget_is_not_solved_for_it():
    @frozen(eq=False)
    class Knobbed(Verifying):
        knob: ClassVar[str] = "unused"
        unused: float = 1.0

    with pytest.raises(NeedsError, match="verifies what it reuses, which a profile does not tell"):
        CachedDenoiser(load_video_dit(), Knobbed(), budget=0.5, profile=load_profile("video-dit"))


def _decay(x: Tensor, t: Tensor) -> Tensor:
    return x * (t / 1000).reshape(-1, 1, 1)


def _noise(seeds: Sequence[int]) -> Inputs:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Inputs(noise=torch.stack([torch.randn(12, 12, generator=g) for g in generators]))


@pytest.mark.parametrize("places", [(), ("",)])
def test_a_comparison_counts_what_is_verified(places):
    """It compares its own count of the model's evaluations with that of the trace, also in the audit."""
    workload = Workload("decay", _decay, "flow-euler", 6, (12, 12), _noise, torch.sigmoid)
    candidate = Candidate("verifying", Verifying(places=places))
    found = compare(workload, [candidate], range(2), baselines=False, audited=2, progress=False)
    (result,) = [each for each in found.results if each.label == "verifying"]
    assert result.calls == 6
    assert result.model_calls == (4 if not places else 7)  # step 3 evaluates one sample, and verifies the other
