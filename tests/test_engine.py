"""The engine's promises: runs, branches, samples, guards, the trace and the audit."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import frozen
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from cachepolicies import (
    CachedDenoiser,
    CachePolicy,
    CacheWarning,
    Context,
    Decision,
    InputError,
    Needs,
    NeedsError,
    PolicyError,
    Reason,
    RunError,
    RunInfo,
    SettingsError,
    Step,
    Substitute,
)
from cachepolicies.base.outputs import tensor_of
from cachepolicies.contracts.reasons import EngineReason
from cachepolicies.policies import Never, SenCache, Uniform
from denoisers import SHAPE, Counted, mixture
from made_profiles import linear_profile

pytestmark = pytest.mark.filterwarnings("ignore:.*too few to gain:cachepolicies.CacheWarning")

TIMESTEPS = tuple(np.linspace(1000.0, 40.0, 25).tolist())
PROFILE = linear_profile(TIMESTEPS, alpha_x=0.2, alpha_t=1e-4)


class Why(Reason):
    AGAIN = "again"
    ENOUGH = "enough"
    ROW = "row"


@frozen
class Alternate(CachePolicy):
    """Reuse at every call but the first after a refresh, without looking at a tensor."""

    name: ClassVar[str] = "alternate"
    max_reuse: int = 1

    def start(self, run: RunInfo) -> tuple[int, ...]:
        return (self.max_reuse,) * run.decisions

    def decide(self, step: Step, state: tuple[int, ...]) -> Decision:
        reuse = tuple(m < self.max_reuse for m in state)
        return Decision(reuse, tuple(Why.AGAIN if r else Why.ENOUGH for r in reuse))

    def observe(self, step: Step, decision: Decision, output: Tensor, state: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(m + 1 if r else 0 for m, r in zip(state, decision.reuse, strict=True))


def noise(rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def euler(denoiser, x: Tensor, timesteps=TIMESTEPS, stop: int | None = None, **kwargs) -> Tensor:
    ends = (*timesteps[1:], 0.0)
    for k, (t, end) in enumerate(zip(timesteps, ends, strict=True)):
        if k == stop:
            break
        x = x + (end - t) / 1000 * denoiser(x, t, **kwargs)
    return x


def sencache(model, **settings) -> CachedDenoiser:
    settings = {"epsilon": 0.05, "epsilon_start": 0.02, "max_reuse": 3} | settings
    return CachedDenoiser(model, "sencache", profile=PROFILE, **settings)


# -- runs ------------------------------------------------------------------------------------------------------------


def test_twice_in_a_row_gives_the_same_twice():
    denoiser = sencache(Counted(mixture()))
    first, records = euler(denoiser, noise()), denoiser.trace.to_dict()
    assert denoiser.cache_ratio > 0
    second = euler(denoiser, noise())
    assert torch.equal(first, second)
    assert denoiser.trace.to_dict() == records


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("stop", [1, 2, 7, 24])
@pytest.mark.parametrize("how", ["break", "exception in the loop", "exception in the model", "interrupt"])
def test_a_broken_off_run_leaves_nothing_behind(how, stop, declared):
    failing = {"at": None}
    inner = mixture()

    def model(x, t):
        if failing["at"] == t:
            raise (KeyboardInterrupt if how == "interrupt" else RuntimeError)("stopped")
        return inner(x, t)

    fresh, used = sencache(Counted(model)), sencache(Counted(model))

    def broken_off():
        if how in ("exception in the model", "interrupt"):
            failing["at"] = TIMESTEPS[stop]
            euler(used, noise(seed=3))
        elif how == "break":
            euler(used, noise(seed=3), stop=stop)
        else:
            euler(used, noise(seed=3), stop=stop)
            raise RuntimeError("stopped")

    try:
        if declared:
            with used.run(timesteps=TIMESTEPS):
                broken_off()
        else:
            broken_off()
    except (RuntimeError, KeyboardInterrupt):
        pass
    failing["at"] = None
    results = []
    for denoiser in (fresh, used):
        if declared:
            with denoiser.run(timesteps=TIMESTEPS):
                results.append(euler(denoiser, noise(seed=3)))
        else:
            results.append(euler(denoiser, noise(seed=3)))
    assert torch.equal(*results)
    assert fresh.trace.to_dict() == used.trace.to_dict()
    assert fresh.cache_ratio > 0


def test_single_step_runs_do_not_see_each_other():
    denoiser = CachedDenoiser(Counted(mixture()), Alternate())
    for seed in range(3):
        x = noise(seed=seed)
        assert torch.equal(denoiser(x, 1000.0), mixture()(x, 1000.0))


@pytest.mark.parametrize(
    "change", [lambda x: x[:1], lambda x: x.double(), lambda x: x[..., :2], lambda x: torch.cat([x, x])]
)
def test_another_shape_dtype_or_batch_starts_a_run(change):
    model = Counted(lambda x, t: x * 0.5)
    denoiser = CachedDenoiser(model, Alternate())
    x = noise()
    denoiser(x, 900.0)
    denoiser(x, 800.0)
    assert model.calls == 1
    out = denoiser(change(x), 700.0)
    assert torch.equal(out, change(x) * 0.5)
    assert model.calls == 2


def test_shape_change_is_recorded_with_its_reason():
    denoiser = sencache(Counted(lambda x, t: x))
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        denoiser(noise(2), TIMESTEPS[0])
        denoiser(noise(2), TIMESTEPS[1])
        denoiser(noise(3), TIMESTEPS[2])
    assert trace.records[2].reason == ("shape, dtype or device changed",) * 3
    assert any("restarted at call 2" in note for note in trace.notes)


def test_rising_t_starts_a_run_and_is_pointed_out():
    denoiser = CachedDenoiser(Counted(lambda x, t: x), Alternate())
    with pytest.warns(CacheWarning, match="t rises from call to call"):
        euler(denoiser, noise(), np.linspace(0.0, 1.0, 20).tolist())


def test_declared_rising_timesteps_are_one_run():
    model = Counted(lambda x, t: x)
    denoiser = CachedDenoiser(model, Alternate())
    times = [k / 10 for k in range(10)]
    with denoiser.run(timesteps=times) as trace:
        for t in times:
            denoiser(noise(), t)
    assert model.calls == 5
    assert [record.index for record in trace.records] == list(range(10))


def test_jumping_back_restarts_within_the_declared_run():
    """RePaint: t rises in the middle of a run; what was cached belongs to another latent."""
    model = Counted(mixture())
    denoiser = CachedDenoiser(model, Alternate(max_reuse=3))
    walk = [1000.0, 900.0, 800.0, 700.0, 900.0, 800.0, 700.0, 600.0]
    with denoiser.run(timesteps=walk) as trace:
        for t in walk:
            denoiser(noise(seed=int(t)), t)
    assert trace.records[4].evaluated == (True, True)
    assert [record.index for record in trace.records] == [0, 1, 2, 3, 1, 2, 3, 4]
    assert any("t went back from 700 to 900" in note for note in trace.notes)


def test_a_step_index_is_read_from_t_not_from_the_number_of_calls():
    """Heun evaluates twice at most t, 2S in between; the index follows t."""
    denoiser = CachedDenoiser(Counted(lambda x, t: x), Uniform(every=2))
    visited = [1000.0, 750.0, 750.0, 625.0, 500.0, 500.0, 250.0, 250.0]
    with denoiser.run(timesteps=[1000.0, 750.0, 500.0, 250.0]) as trace:
        for t in visited:
            denoiser(noise(), t)
    assert [record.index for record in trace.records] == [0, 1, 1, 1, 2, 2, 3, 3]


def test_low_precision_timesteps_are_recognised():
    denoiser = CachedDenoiser(Counted(lambda x, t: x), Uniform(every=2))
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for t in TIMESTEPS:
            denoiser(noise(), torch.tensor(t).bfloat16())
    assert [record.index for record in trace.records] == list(range(len(TIMESTEPS)))


def test_two_runs_that_are_open_at_once_are_told_apart_by_their_handles_and_a_run_can_follow():
    denoiser = sencache(Counted(mixture()))
    latents = [noise(seed=1), 3.0 * noise(seed=2)]
    alone = []
    for x in latents:
        with denoiser.run(timesteps=TIMESTEPS) as run:
            alone.append((euler(denoiser, x), run.trace.to_dict()))
    with denoiser.run(timesteps=TIMESTEPS) as one, denoiser.run(timesteps=TIMESTEPS) as other:
        for t, end in zip(TIMESTEPS, (*TIMESTEPS[1:], 0.0), strict=True):
            with pytest.raises(RunError, match=r"2 runs of this denoiser are open here .* could belong to any of them"):
                denoiser(latents[0], t)
            latents = [x + (end - t) / 1000 * run(x, t) for x, run in zip(latents, (one, other), strict=True)]
    for x, run, (expected, record) in zip(latents, (one, other), alone, strict=True):
        assert torch.equal(x, expected)
        assert run.trace.to_dict() == record
    assert alone[0][1]["nfe"] != alone[1][1]["nfe"]
    with denoiser.run(timesteps=TIMESTEPS):
        euler(denoiser, noise(seed=1))
    assert denoiser.trace.to_dict() == alone[0][1]


def test_two_generators_that_take_turns_have_a_run_each():
    denoiser = sencache(Counted(mixture()))

    def generation(x):
        with denoiser.run(timesteps=TIMESTEPS):
            for t, end in zip(TIMESTEPS, (*TIMESTEPS[1:], 0.0), strict=True):
                x = x + (end - t) / 1000 * denoiser(x, t)
                yield x

    def undeclared(x):
        for t in TIMESTEPS:
            yield denoiser(x, t)

    latents = [noise(seed=1), 3.0 * noise(seed=2)]
    alone = [list(generation(x)) for x in latents]
    in_turn = zip(*zip(*(generation(x) for x in latents), strict=True), strict=True)
    for one, other in zip(alone, in_turn, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    with pytest.raises(RunError, match="two samplings that take turns cannot be told apart"):
        list(zip(*(undeclared(x) for x in latents), strict=True))


def test_run_by_number_of_steps_needs_a_scheduler():
    with pytest.raises(RunError, match="needs a scheduler"), sencache(Counted(mixture())).run(num_steps=10):
        pass
    denoiser = CachedDenoiser(Counted(mixture()), "uniform:every=2", scheduler="flow-euler")
    with denoiser.run(num_steps=10):
        denoiser(noise(), 1000.0)
    assert denoiser.trace.records[0].index == 0


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "at least one"),
        ([[1.0]], r"timesteps\[0\]"),
        ([1.0, float("nan")], r"timesteps\[1\] is nan"),
        (["a"], "'a'"),
    ],
)
def test_bad_timesteps(timesteps, message):
    with pytest.raises(InputError, match=message), sencache(Counted(mixture())).run(timesteps=timesteps):
        pass


def test_a_declared_run_that_begins_elsewhere_is_refused():
    denoiser = sencache(Counted(mixture()))
    with (
        pytest.raises(RunError, match="first call has t=1, which is not among them"),
        denoiser.run(timesteps=TIMESTEPS),
    ):
        denoiser(noise(), 1.0)


def test_a_policy_that_needs_the_run_length_says_how_to_declare_it():
    for denoiser in (
        CachedDenoiser(Counted(mixture()), Uniform(every=2)),
        sencache(Counted(mixture()), protect_last=1),
    ):
        with pytest.raises(NeedsError, match=r"with denoiser\.run\(timesteps=\.\.\.\)"):
            denoiser(noise(), 1000.0)


@pytest.mark.parametrize(
    "walk",
    [
        (1000.0, 600.0, 800.0, 500.0),  # an adaptive step, rejected and taken again, shorter
        (1040.0, 1000.0, 780.0, 750.0, 520.0),  # noise added before every step
    ],
)
def test_samplers_that_leave_the_declared_timesteps_are_served(walk):
    denoiser = CachedDenoiser(Counted(mixture()), Alternate())
    with denoiser.run(timesteps=[1000.0, 750.0, 500.0, 250.0]) as trace:
        for t in walk:
            x = noise(seed=int(t))
            out = denoiser(x, t)
            assert torch.equal(out, mixture()(x, t)) or not trace.records[-1].evaluated[0]
    assert trace.calls == len(walk)


def test_an_inner_run_leaves_the_outer_one_alone():
    denoiser = CachedDenoiser(Counted(lambda x, t: x), Alternate())
    levels = [6.0, 5.0, 4.0, 3.0, 2.0]
    with denoiser.run(timesteps=levels) as trace:
        denoiser(noise(), 6.0)
        with denoiser.run(timesteps=[1.0]) as inner:
            with pytest.raises(RunError, match="could belong to any of them"):
                denoiser(noise(), 1.0)
            inner(noise(), 1.0)
        denoiser(noise(), 5.0)
    assert inner.calls == inner.nfe == 1
    assert trace.calls == 2
    assert trace.nfe == 1


def test_the_trace_of_a_batch_that_shrinks():
    denoiser = CachedDenoiser(Counted(lambda x, t: x), Alternate())
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for t, rows in zip(TIMESTEPS, (3, 3, 1, 1), strict=False):
            denoiser(noise(rows), t)
    assert trace.nfe_per_sample == (2, 1, 1)
    assert trace.cache_ratio == 0.5
    assert "[cond]" not in str(trace)


def test_a_trace_prints_whatever_a_branch_is_called():
    denoiser = CachedDenoiser(lambda x, t: x, "never")
    denoiser(noise(), 1.0, branch="[/u]")
    assert "[/u]" in str(denoiser.trace)


# -- branches --------------------------------------------------------------------------------------------------------


def branch_model(x, t, scale):
    return x * scale + t


@pytest.mark.parametrize("branches", ["shared", "independent"])
def test_each_branch_reuses_its_own_output(branches):
    denoiser = CachedDenoiser(Counted(branch_model), Alternate(max_reuse=2), branches=branches)
    x = noise()
    for k, t in enumerate(TIMESTEPS):
        cond = denoiser(x, t, scale=1.0, branch="cond")
        with denoiser.branch("uncond"):
            uncond = denoiser(x, t, scale=-1.0)
        reference = TIMESTEPS[k - k % 3]
        assert torch.equal(cond, x + reference)
        assert torch.equal(uncond, -x + reference)
    assert denoiser.trace.calls == 50
    assert denoiser.nfe == 18
    led = [record.led for record in denoiser.trace.records]
    assert led == ([True, False] * 25 if branches == "shared" else [True] * 50)


def test_unnamed_guidance_branches_are_refused_rather_than_mixed_up():
    denoiser = sencache(Counted(branch_model))
    x = noise()
    denoiser(x, 1000.0, scale=1.0)
    with pytest.raises(RunError, match='branch="cond"'):
        denoiser(x, 1000.0, scale=-1.0)
    denoiser(x, 1000.0, scale=torch.ones(1))
    with pytest.raises(RunError, match="twice at the same x and t=1000"):
        denoiser(x.clone(), 1000.0, scale=-torch.ones(1))


def test_repeated_points_with_the_same_conditioning_are_no_branches(monkeypatch):
    """Heun evaluates twice at one t; conditioning made anew for each call is still the same conditioning."""
    for place in (True, False):
        monkeypatch.setattr("cachepolicies.engine.memory.visible", lambda tensor, place=place: place)
        denoiser = sencache(Counted(branch_model))
        z = noise()
        for t in (1000.0, 960.0, 960.0, 920.0, 920.0):
            denoiser(z, t, scale=torch.ones(1))
            z.mul_(0.9)
        assert denoiser.trace.calls == 5
        denoiser(z * 1.0, 880.0, scale=torch.tensor([1.0]))
        with pytest.raises(RunError, match="twice at the same x"):
            denoiser(z * 1.0, 880.0, scale=torch.tensor([-1.0]))


def test_conditioning_is_not_kept_alive():
    denoiser = sencache(branch_model)
    scale = torch.ones(1)
    kept = weakref.ref(scale)
    denoiser(noise(), 1000.0, scale=scale)
    del scale
    assert kept() is None


def test_a_branch_that_joins_late_reuses_only_what_belongs_to_the_shared_reference():
    """Guidance that is on for part of the run: the branch's cache may be older than the reference of the score."""
    model = Counted(branch_model)
    denoiser = CachedDenoiser(model, Alternate(max_reuse=1))
    x = noise()
    pattern = []
    for k, t in enumerate(TIMESTEPS[:8]):
        denoiser(x, t, scale=1.0, branch="cond")
        if k in (0, 3, 5, 6, 7):
            out = denoiser(x, t, scale=-1.0, branch="uncond")
            pattern.append(denoiser.trace.records[-1].evaluated[0])
            expected = t if pattern[-1] else TIMESTEPS[k - 1]
            assert torch.equal(out, -x + expected)
    # evaluated with the leader at 0 and 6; at 3 and 5 the leader reuses what this branch never computed
    assert pattern == [True, True, True, True, False]


def test_batched_guidance_rows_follow_one_decision():
    x = noise(3)
    x[1] *= 4.0
    inner = mixture()
    wrapped = CachedDenoiser(
        Counted(lambda z, t: inner(z, t)), "sencache", profile=PROFILE, cfg="batched", epsilon=0.05, epsilon_start=0.02
    )
    plain = sencache(Counted(inner))
    z = x
    for t in TIMESTEPS:
        doubled = wrapped(torch.cat([z, z]), t)
        single = plain(z, t)
        assert len(wrapped.trace.records[-1].evaluated) == 3
        torch.testing.assert_close(doubled[:3], single)
        torch.testing.assert_close(doubled[3:], single)
        z = z - 0.04 * single
    assert [r.evaluated for r in wrapped.trace.records] == [r.evaluated for r in plain.trace.records]
    assert 0 < wrapped.cache_ratio < 1


def test_batched_guidance_needs_an_even_batch():
    denoiser = CachedDenoiser(Counted(mixture()), Alternate(), cfg="batched")
    with pytest.raises(InputError, match="3 rows, which is no multiple of the 2"):
        denoiser(noise(3), 1000.0)


# -- samples ---------------------------------------------------------------------------------------------------------


def test_only_the_rows_that_need_it_are_evaluated_and_arguments_are_sliced_along():
    seen = []

    def model(x, t, embedding, *, extra, shared):
        seen.append((x.shape[0], t.shape[0], embedding.shape[0], extra["a"][0].shape[0], shared.shape[0]))
        return x * embedding.reshape(-1, 1, 1, 1) + extra["a"][0].reshape(-1, 1, 1, 1) + shared.sum()

    x = noise(4)
    speed = torch.tensor([0.0, 0.02, 0.1, 0.3]).reshape(4, 1, 1, 1)
    arguments: dict[str, Any] = {"extra": {"a": [torch.arange(4.0)]}, "shared": torch.ones(1, 7)}
    embedding = torch.arange(1.0, 5.0)
    denoiser = sencache(Counted(model))
    for t in TIMESTEPS:
        before = len(seen)
        out = denoiser(x, torch.full((4,), t), embedding, **arguments)
        record = denoiser.trace.records[-1]
        full = model(x, torch.full((4,), t), embedding, **arguments)
        for row, evaluated in enumerate(record.evaluated):
            assert not evaluated or torch.equal(out[row], full[row])
        if record.model_called:
            n = sum(record.evaluated)
            assert seen[before] == (n, n, n, n, 1)
        x = x + speed * out / out.std()
    counts = denoiser.trace.nfe_per_sample
    assert len(set(counts)) > 1
    assert any(0 < sum(record.evaluated) < 4 for record in denoiser.trace.records)


def test_an_argument_that_cannot_be_sliced_is_refused_at_the_first_call():
    denoiser = sencache(Counted(lambda x, t, rope: x), per_sample=True)
    with pytest.raises(InputError, match=r"'argument 2' has shape \(7, 2\): its first dimension fits neither 1 nor"):
        denoiser(noise(4), 1000.0, torch.zeros(7, 2))
    named = CachedDenoiser(lambda x, t, rope: x, Alternate(), batched=())
    assert named(noise(4), 1000.0, torch.zeros(7, 2)).shape == (4, *SHAPE)
    whole = CachedDenoiser(lambda x, t, rope: x, Alternate(), per_sample=False)
    assert whole(noise(4), 1000.0, torch.zeros(7, 2)).shape == (4, *SHAPE)


@frozen
class LastRow(Alternate):
    """Evaluate the last row at every call, the others at the first."""

    name: ClassVar[str] = "last-row"

    def decide(self, step: Step, state: object) -> Decision:
        reuse = (True,) * (step.run.decisions - 1) + (False,)
        return Decision(reuse, (Why.ROW,) * step.run.decisions)


def test_lists_of_samples_are_sliced_when_they_are_named():
    def model(x, t, labels):
        return torch.stack([torch.full_like(row, float(label)) for row, label in zip(x, labels, strict=True)])

    denoiser = CachedDenoiser(model, LastRow(), batched=("labels",))
    for t in (900.0, 800.0):
        assert denoiser(noise(), t, [1, 2])[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert denoiser.trace.records[1].evaluated == (False, True)
    with pytest.raises(InputError, match="'labels' is a list with as many entries"):
        CachedDenoiser(model, LastRow(), per_sample=True)(noise(), 900.0, [1, 2])
    arrays = CachedDenoiser(model, LastRow())
    for t in (900.0, 800.0):
        assert arrays(noise(), t, np.array([1, 2]))[:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_further_output_tensors_are_refused_before_they_are_mixed_up():
    for extra in (lambda x: x * 2, lambda x: {"h": x * 2}, lambda x: [x]):
        denoiser = CachedDenoiser(lambda x, t, extra=extra: (x, extra(x)), LastRow(), per_sample=True)
        with pytest.raises(InputError, match="further tensors beside its prediction"):
            denoiser(noise(), 900.0)
    whole = CachedDenoiser(lambda x, t: (x, x * 2), Alternate(), per_sample=False)
    assert len(whole(noise(), 900.0)) == 2


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (lambda x, t, rope: x * t + rope.sum(), (torch.ones(7, 2),)),
        (lambda x, t, sizes: x * t, ([1, 2],)),
        (lambda x, t: (x * t, x * 2), ()),
        (lambda x, t: (x * t, {"hidden": [x]}), ()),
    ],
    ids=["tensor", "list", "two tensors", "tensor in a list"],
)
def test_where_rows_cannot_be_told_apart_the_batch_decides_as_one(model, arguments):
    denoiser, x = CachedDenoiser(model, Alternate()), noise()
    with pytest.warns(CacheWarning, match="decide as one here") as told:
        outputs = [tensor_of(denoiser(x, t, *arguments)) for t in (900.0, 800.0, 700.0, 600.0)]
    assert len(told) == 1
    assert [len(record.evaluated) for record in denoiser.trace.records] == [1] * 4
    assert [record.call for record in denoiser.trace.records] == [0, 1, 2, 3]
    plain = [tensor_of(model(x, t, *arguments)) for t in (900.0, 800.0, 700.0, 600.0)]
    evaluated = [record.evaluated[0] for record in denoiser.trace.records]
    assert evaluated.count(False) == 2
    assert all(torch.equal(a, b) for a, b, fresh in zip(outputs, plain, evaluated, strict=True) if fresh)
    denoiser(x, 900.0, *arguments)  # the next run knows it, and says it no more
    assert len(denoiser.trace.records[0].evaluated) == 1


def test_an_output_with_one_field_and_lists_of_samples_are_predictions():
    @dataclasses.dataclass
    class Embedding:
        embedding: torch.Tensor

    x = noise()
    for model in (lambda x, t: Embedding(x * t), lambda x, t: ([*(x * t)],)):
        denoiser = CachedDenoiser(model, LastRow())
        for t in (900.0, 800.0):
            assert type(denoiser(x, t)) is type(model(x, t))
        reused = tensor_of(denoiser(x, 700.0))
        assert torch.equal(reused, torch.cat([x[:-1] * 900.0, x[-1:] * 700.0]))
    with pytest.raises(InputError, match="a list of samples of different shapes"):
        CachedDenoiser(lambda x, t: ([x[0], x[1, :1]],), Alternate())(x, 900.0)


def test_x_and_t_in_one_place_are_refused():
    with pytest.raises(SettingsError, match="x and t were both looked for at position 0"):
        CachedDenoiser(lambda t, y: y, "never")
    denoiser = CachedDenoiser(lambda t, y: y * t, "never", x_name="y", t_name="t")
    assert torch.equal(denoiser(2.0, noise()), noise() * 2)
    by_keyword = CachedDenoiser(lambda x, *rest, t: x * t, "never")
    assert torch.equal(by_keyword(noise(), 7.5, t=2.0), noise() * 2)


def test_one_decision_for_the_batch():
    denoiser = sencache(Counted(mixture()), per_sample=False)
    euler(denoiser, noise(5))
    assert all(len(record.evaluated) == 1 for record in denoiser.trace.records)
    assert isinstance(denoiser.model, Counted)
    assert set(denoiser.model.rows) == {5}
    assert denoiser.model.calls == denoiser.nfe == denoiser.trace.model_calls


# -- forms of input and output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y,),
        lambda y: [y, "aux"],
        lambda y: Transformer2DModelOutput(sample=y),
        lambda y: SimpleNamespace(sample=y, aux=1),
    ],
)
def test_the_return_type_stays_what_the_model_returns(wrap):
    denoiser = sencache(lambda x, t: wrap(x * 0.1))
    denoiser.trace  # noqa: B018
    kind = type(wrap(noise()))
    x = noise(3)
    for t in TIMESTEPS:
        out = denoiser(x, t)
        assert type(out) is kind
        y = out if isinstance(out, Tensor) else out[0] if isinstance(out, (tuple, list)) else out.sample
        assert y.shape == x.shape
        x = x * torch.tensor([1.0, 0.99, 0.9]).reshape(3, 1, 1, 1)
    assert 0 < denoiser.cache_ratio < 1
    if kind is list:
        assert out[1] == "aux"


@pytest.mark.parametrize(
    ("signature", "call"),
    [
        ("hidden_states, encoder_hidden_states, timestep", lambda d, x, t: d(x, torch.zeros(2, 3), t)),
        (
            "hidden_states, encoder_hidden_states, timestep",
            lambda d, x, t: d(hidden_states=x, timestep=t, encoder_hidden_states=torch.zeros(2, 3)),
        ),
        ("sample, timestep", lambda d, x, t: d(x, timestep=t)),
        ("x, sigma", lambda d, x, t: d(x, t)),
        ("*args, **kwargs", lambda d, x, t: d(x, t)),
        ("*args, **kwargs", lambda d, x, t: d(hidden_states=x, timestep=t)),
        ("z, level", lambda d, x, t: d(level=t, z=x)),
    ],
)
def test_x_and_t_are_found(signature, call):
    scope: dict = {}
    model_scope: dict = {"scope": scope}
    exec(f"def model({signature}):\n    return scope['pick'](locals())", model_scope)

    def pick(values):
        flat = [*values.get("args", ()), *values.get("kwargs", {}).values(), *values.values()]
        return next(v for v in flat if isinstance(v, Tensor) and v.shape[1:] == SHAPE) * 1.0

    scope["pick"] = pick
    names: dict[str, Any] = {"x_name": "z", "t_name": "level"} if "level" in signature else {}
    denoiser = CachedDenoiser(model_scope["model"], Alternate(), **names)
    for t in (900.0, 800.0):
        assert torch.equal(call(denoiser, noise(), t), noise())
    assert [record.t for record in denoiser.trace.records] == [900.0, 800.0]
    assert denoiser.nfe == 1


def test_a_module_stays_reachable():
    module = nn.Linear(4, 4)
    vars(module)["config"] = {"size": 4}
    denoiser = CachedDenoiser(module, Never(), x_name="input", t_name=None)
    assert denoiser.model is module
    assert list(denoiser.parameters()) == list(module.parameters())
    assert denoiser.config == {"size": 4}
    assert denoiser.to(torch.float64) is denoiser
    assert module.weight.dtype == torch.float64
    assert denoiser.eval() is denoiser
    assert denoiser.float().requires_grad_(False) is denoiser
    assert not module.training
    assert denoiser.state_dict().keys() == module.state_dict().keys()
    with pytest.raises(AttributeError, match="no_such_thing"):
        denoiser.no_such_thing  # noqa: B018


def test_the_caller_may_change_outputs_and_latents_in_place():
    reference, denoiser = sencache(Counted(mixture())), sencache(Counted(mixture()))
    x, z = noise(), noise()
    for t in TIMESTEPS:
        x = x - 0.04 * reference(x, t)
        v = denoiser(z, t)
        v.mul_(-0.04)
        z.add_(v)
        v.fill_(1e9)
        torch.testing.assert_close(x, z)
    assert reference.trace.to_dict() == denoiser.trace.to_dict()


def test_memory_is_one_output_and_one_latent_a_branch_and_gone_after_the_run():
    alive: list[weakref.ref] = []

    def model(x, t):
        y = x * 2.0
        alive.append(weakref.ref(y))
        return y

    denoiser = CachedDenoiser(model, "sencache", profile=linear_profile(TIMESTEPS, class_name="model"), epsilon=1e9)
    with denoiser.run(timesteps=TIMESTEPS):
        for t in TIMESTEPS:
            denoiser(noise(seed=int(t)), t)
        latest = denoiser._requests.latest
        assert latest is not None
        run = latest.run
        assert run is not None
        held = [refresh.output for store in run.memory._stores.values() for refresh in store.history]
        states = [group.state.inner.x for group in run.groups.values()]
        assert len(held) == len(states) == 1
        assert sum(ref() is not None for ref in alive) == 0  # the model's own outputs are copied, not kept
    assert denoiser._requests.latest is latest
    assert latest.run is None


def test_the_handle_of_a_run_that_is_over_keeps_nothing_of_where_it_was_entered():
    denoiser = sencache(Counted(mixture()))
    gone: list[weakref.ref] = []

    def generate():
        x = noise()
        gone.append(weakref.ref(x))
        with denoiser.run(timesteps=TIMESTEPS) as run:
            euler(denoiser, x)
        return run

    gc.disable()
    try:
        run = generate()
        assert gone[0]() is None
    finally:
        gc.enable()
    assert run.calls == len(TIMESTEPS)


# -- guards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["host", "accelerator"])
def placement(request, monkeypatch):
    """Run as if the tensors were where the host cannot see them without waiting."""
    if request.param == "accelerator":
        monkeypatch.setattr("cachepolicies.engine.memory.visible", lambda tensor: False)
    return request.param


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_output_is_never_cached(bad, placement):
    poisoned = {1: TIMESTEPS[4]}

    def model(x, t):
        y = x * 1.0
        if t == poisoned[1]:
            y[-1] = bad
        return y

    denoiser = CachedDenoiser(
        Counted(model), "sencache", profile=linear_profile(TIMESTEPS, 0.0, 1e-4), epsilon=0.02, epsilon_start=0.02
    )
    x = noise()
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        for t in TIMESTEPS:
            out = denoiser(x, t)
            assert t == poisoned[1] or out.isfinite().all()
    assert trace.records[3].evaluated == (False, False)
    assert trace.records[4].evaluated == (True, True)
    assert trace.records[5].evaluated == (False, True)
    assert trace.records[5].reason[1] == "non-finite output"
    assert trace.records[6].evaluated == (False, False)
    assert any("non-finite output at t=840" in note for note in trace.notes)


def test_a_non_finite_output_without_a_read_is_healed_on_the_device(placement):
    """A policy that looks at no tensor: no read, and still nothing non-finite is handed out a second time."""

    def model(x, t):
        y = x + t
        if t == TIMESTEPS[2]:
            y[0] = float("nan")
        return y

    denoiser = CachedDenoiser(model, Uniform(every=2))
    x = noise()
    with denoiser.run(timesteps=TIMESTEPS[:6]):
        outs = [denoiser(x, t) for t in TIMESTEPS[:6]]
    assert outs[2].isnan()[0].all()
    assert outs[3].isfinite().all()
    fresh = TIMESTEPS[3] if placement == "host" else TIMESTEPS[0]
    torch.testing.assert_close(outs[3][0], x[0] + fresh)


@pytest.mark.parametrize("same", [True, False])
def test_branches_in_one_buffer_that_is_written_anew_for_each_have_to_be_named(same):
    denoiser = CachedDenoiser(lambda x, t, text: x * text, Uniform(every=2))
    x, buffer = noise(), torch.empty(2, *SHAPE)
    texts = [torch.full((2, *SHAPE), 1.0), torch.full((2, *SHAPE), 1.0 if same else 2.0)]
    with denoiser.run(timesteps=TIMESTEPS[:2]):
        denoiser(buffer.copy_(x), TIMESTEPS[0], texts[0])
        if same:
            denoiser(buffer.copy_(x), TIMESTEPS[0], texts[1])
            return
        with pytest.raises(RunError, match="written on in between"):
            denoiser(buffer.copy_(x), TIMESTEPS[0], texts[1])
    with denoiser.run(timesteps=TIMESTEPS[:2]):
        for branch, text in zip(("cond", "uncond"), texts, strict=True):
            out = denoiser(buffer.copy_(x), TIMESTEPS[0], text, branch=branch)
            torch.testing.assert_close(out, x * text)


def test_a_non_finite_input_is_evaluated():
    denoiser = CachedDenoiser(Counted(lambda x, t: torch.ones_like(x) * t), Alternate(max_reuse=10))
    x = noise()
    broken = x.clone()
    broken[0] = float("nan")
    outs = [denoiser(latent, t) for t, latent in ((900.0, x), (800.0, broken), (700.0, broken), (600.0, x))]
    reasons = [record.reason[0] for record in denoiser.trace.records]
    assert reasons == ["enough", "non-finite input", "non-finite input", "again"]
    assert [record.evaluated for record in denoiser.trace.records] == [
        (True, True), (True, False), (True, False), (False, False)
    ]  # fmt: skip
    assert torch.equal(outs[3][0], torch.full(SHAPE, 700.0))  # finite, whatever it came from


@pytest.mark.parametrize("substitute", ["hold", "linear", "quadratic"])
def test_evaluations_that_are_not_finite_are_forgotten_with_all_before_them(substitute):
    def model(x, t):
        return torch.full_like(x, float("nan") if t == TIMESTEPS[3] else t)

    timesteps = TIMESTEPS[:8]
    denoiser = CachedDenoiser(model, "schedule", refreshes=(0, 1, 3, 5, 6), substitute=substitute)
    with denoiser.run(timesteps=timesteps):
        outs = [denoiser(noise(), t) for t in timesteps]
    assert [k for k, record in enumerate(denoiser.trace.records) if all(record.evaluated)] == [0, 1, 3, 4, 5, 6]
    assert denoiser.trace.records[4].reason == (EngineReason.NON_FINITE_OUTPUT,) * 2
    assert any("not remembered" in note for note in denoiser.trace.notes)
    assert all(out.isfinite().all() for k, out in enumerate(outs) if k != 3)
    held = timesteps[6] if substitute == "hold" else timesteps[7]  # the outputs lie on a line in t
    torch.testing.assert_close(outs[7], torch.full_like(outs[7], held))


def test_a_wanted_gradient_is_evaluated():
    denoiser = CachedDenoiser(lambda x, t: x * 2, Alternate(max_reuse=9))
    denoiser(noise(), 900.0)
    x = noise().requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser(x, 800.0).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))
    assert denoiser.trace.records[-1].reason == ("gradient wanted",) * 2
    with torch.no_grad():
        denoiser(x, 700.0)
    assert denoiser.trace.records[-1].evaluated == (False, False)


# -- trace, warnings, audit ------------------------------------------------------------------------------------------


def test_trace_agrees_with_an_independent_count(tmp_path):
    model = Counted(mixture())
    denoiser = sencache(model, audit=0.4, audit_seed=5)
    x = noise(4)
    x *= torch.tensor([0.2, 1.0, 2.0, 4.0]).reshape(4, 1, 1, 1)
    with denoiser.run(timesteps=TIMESTEPS) as trace:
        euler(denoiser, x)
    audited = [record for record in trace.records if record.audit]
    assert audited
    assert model.calls == trace.model_calls + trace.audit_calls
    audited_rows = sum(sum(not e for e in record.evaluated) for record in audited)
    assert sum(model.rows) == sum(trace.nfe_per_sample) + audited_rows
    assert trace.nfe == sum(trace.nfe_per_sample) / 4
    assert trace.cache_ratio == pytest.approx(1 - trace.nfe / 25)
    assert denoiser.nfe == trace.nfe
    text = trace.to_json(tmp_path / "trace.json")
    data = json.loads(text)
    assert json.loads((tmp_path / "trace.json").read_text()) == data
    assert data["nfe"] == trace.nfe
    assert len(data["records"]) == 25
    frame = trace.to_dataframe()
    assert len(frame) == 100
    assert frame.evaluated.sum() == sum(trace.nfe_per_sample)
    printed = str(trace)
    assert "within tolerance" in printed
    assert f"{trace.nfe:.4g} evaluations in 25 calls" in printed
    for record in audited:
        for true, predicted, evaluated in zip(
            record.audit.true_error, record.audit.predicted_error, record.evaluated, strict=True
        ):
            assert np.isnan(true) == evaluated
            assert predicted >= 0


def test_audit_measures_the_true_error_and_never_changes_the_output():
    plain, audited = sencache(Counted(mixture())), sencache(Counted(mixture()), audit=1.0)
    torch.manual_seed(0)
    a = euler(plain, noise())
    torch.manual_seed(0)
    draws = torch.get_rng_state()
    b = euler(audited, noise())
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), draws)
    assert plain.nfe == audited.nfe
    x = noise()
    for t, record in zip(TIMESTEPS, audited.trace.records, strict=True):
        y = plain(x, t)
        if record.audit is not None:
            expected = (mixture()(x, t) - y).square().mean(dim=(1, 2, 3)).sqrt()
            for row, true in enumerate(record.audit.true_error):
                assert np.isnan(true) or true == pytest.approx(expected[row].item(), rel=1e-4, abs=1e-7)
        x = x + (([*TIMESTEPS, 0.0][TIMESTEPS.index(t) + 1]) - t) / 1000 * y
    assert audited.trace.audit_calls == sum(not all(record.evaluated) for record in audited.trace.records)


def test_an_audit_that_draws_does_not_disturb_the_sampler():
    def noisy(x, t):
        return x + torch.randn(x.shape) * 1e-3

    outs = []
    for audit in (0.0, 1.0):
        torch.manual_seed(1)
        outs.append(euler(CachedDenoiser(noisy, Alternate(), audit=audit), noise()))
    assert torch.equal(*outs)


def test_a_run_without_reuse_says_so_once():
    denoiser = sencache(Counted(mixture()), epsilon=1e-12)

    def run():
        with denoiser.run(timesteps=TIMESTEPS):
            euler(denoiser, noise())

    said = "nothing was reused in a run of 25 calls: .*above tolerance.*; the nearest score was .* tolerance of 1e-12"
    with pytest.warns(CacheWarning, match=said):
        run()
    run()


def test_too_few_steps_are_pointed_out():
    denoiser = sencache(Counted(mixture()))
    with pytest.warns(CacheWarning, match="a run of 3 steps has too few"), denoiser.run(timesteps=TIMESTEPS[:3]):
        euler(denoiser, noise(), TIMESTEPS[:3])


def test_an_audit_does_not_show_in_the_further_outputs():
    for audit in (0.0, 1.0):
        denoiser = CachedDenoiser(lambda x, t: (x, t), Alternate(), audit=audit)
        assert [denoiser(noise(), t)[1] for t in (900.0, 800.0)] == [900.0, 900.0]


# -- contracts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision((True,), (Why.ROW,)), r"returned reuse of length 1; it is a tuple of 2"),
        (Decision(torch.tensor([True, False]), (Why.ROW, Why.ROW)), "returned reuse as a Tensor"),  # type: ignore[arg-type]
        (Decision((1, 0), (Why.ROW, Why.ROW)), "its entries are bools"),  # type: ignore[arg-type]
        (Decision((True, True), (Why.ROW,)), "returned reason of length 1"),
        (Decision((True, True), ("x", Why.ROW)), "returned reason .*members of an enumeration"),  # type: ignore[arg-type]
        (Decision((True, True), (Why.ROW, Why.AGAIN), score=(1.0,)), "returned score of length 1"),
        (True, "decide returns a Decision"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_named(decision, message):
    @frozen
    class Broken(Alternate):
        name: ClassVar[str] = "broken"

        def decide(self, step, state):
            return decision

    with pytest.raises(PolicyError, match=rf"policy 'broken' .*{message}"):
        CachedDenoiser(Counted(mixture()), Broken())(noise(), 1000.0)


@frozen
class Odd(Substitute):
    """A substitute that predicts what the test wants."""

    name: ClassVar[str] = "odd"
    make: Callable[[Tensor], Any]
    history: int = 1

    def predict(self, context: Context, history):
        return self.make(history[0].output)


def test_a_substitute_that_breaks_its_contract_is_named():
    for make, message in (
        (lambda y: y.double()[:1], r"predicted \(1, 2, 3, 4\) torch.float64"),
        (lambda y: None, "None"),
    ):
        denoiser = CachedDenoiser(Counted(mixture()), Alternate(), substitute=Odd(make))
        denoiser(noise(), 1000.0)
        with pytest.raises(PolicyError, match=f"substitute 'odd' .*{message}"):
            denoiser(noise(), 900.0)
    with pytest.raises(PolicyError, match="asks for a history of 0"):
        CachedDenoiser(Counted(mixture()), Alternate(), substitute=Odd(lambda y: y, 0))


def test_a_view_of_what_is_stored_may_be_returned():
    denoiser = CachedDenoiser(lambda x, t: x + t, Alternate(max_reuse=5), substitute=Odd(lambda y: y.view_as(y)))
    x = noise()
    denoiser(x, 900.0)
    denoiser(x, 800.0).zero_()
    assert torch.equal(denoiser(x, 700.0), x + 900.0)


def test_a_policy_that_reuses_against_its_word():
    class Liar(Alternate):
        reuses = False

    denoiser = CachedDenoiser(Counted(mixture()), Liar())
    denoiser(noise(), 900.0)
    with pytest.raises(PolicyError, match="its property `reuses` says that it never does"):
        denoiser(noise(), 800.0)


def test_steps_that_lie_close_together_are_told_apart():
    levels = tuple(700.0 * (0.0001 ** (k / 149)) for k in range(150))
    denoiser = CachedDenoiser(lambda x, t: x, Uniform(every=2))
    with denoiser.run(timesteps=levels) as trace:
        for t in levels:
            denoiser(noise(), t)
    assert [record.index for record in trace.records] == list(range(150))


def test_what_is_no_policy_is_refused():
    for wrong in (SenCache, object(), 3):
        with pytest.raises(PolicyError, match=r"does not derive from cachepolicies\.CachePolicy"):
            CachedDenoiser(Counted(mixture()), wrong)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"does not derive from cachepolicies\.Substitute"):
        CachedDenoiser(Counted(mixture()), Never(), substitute=3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="settings epsilon were given beside a policy object"):
        CachedDenoiser(Counted(mixture()), Never(), epsilon=1.0)


def test_signals_cannot_be_had_at_the_output():
    @frozen
    class Curious(Alternate):
        name: ClassVar[str] = "curious"

        @property
        def needs(self):
            return Needs(signals={"modulated_input"})

    with pytest.raises(
        NeedsError, match=r"needs the signal modulated_input from inside the model, which site 'output' of Counted"
    ):
        CachedDenoiser(Counted(mixture()), Curious())


def test_with_one_noise_level_a_token_the_largest_counts():
    """Image to video: the tokens of a given frame have t = 0, those that are sampled the run's."""
    denoiser = CachedDenoiser(lambda x, t: x, Never())
    t = torch.tensor([[0.0, 700.0, 700.0], [0.0, 700.0, 0.0]])
    denoiser(noise(2), t)
    assert denoiser.trace.records[0].t == 700.0
    with pytest.raises(InputError, match=r"t differs between the rows of one call: \[700.0, 600.0\]"):
        denoiser(noise(2), torch.tensor([[0.0, 700.0], [0.0, 600.0]]))


def test_a_latent_in_a_list_is_one_tensor_a_sample():
    denoiser = CachedDenoiser(lambda x, t: torch.stack(list(x)), Alternate(), x_name="x", t_name="t")
    latents = list(noise(3))
    assert torch.equal(denoiser(latents, 9.0), torch.stack(latents))
    denoiser(latents, 8.0)
    assert denoiser.trace.records[1].evaluated == (False,) * 3
    with pytest.raises(InputError, match="x is a list of latents of different shapes"):
        denoiser([torch.zeros(2), torch.zeros(3)], 9.0)


def test_a_branch_that_comes_twice_at_one_t_is_decided_twice():
    """As Heun's second evaluation of a step and the first of the next."""
    denoiser, levels = CachedDenoiser(lambda x, t: x * t, Alternate()), (900.0, 800.0, 800.0, 700.0, 700.0)
    with denoiser.run(timesteps=(900.0, 800.0, 700.0)) as run:
        for k, t in enumerate(levels):
            denoiser(noise() + k, t)
    assert [record.evaluated[0] for record in run.trace.records] == [True, False, True, False, True]
