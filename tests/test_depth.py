"""Plans in step and depth: what places do is measured, the best plan is solved for, and runs follow it."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cachepolicies
from cachepolicies import (
    CachedDenoiser,
    CachePolicy,
    CalibrationSamples,
    Decision,
    Needs,
    NeedsError,
    SettingsError,
    Step,
    calibrate,
    sample,
)
from cachepolicies.calibration import measure_places, plan_depth
from cachepolicies.comparison import Candidate, Inputs, Workload, compare
from cachepolicies.contracts.policy import Grain
from cachepolicies.planning import (
    DepthPlan,
    PlaceErrors,
    PlacePart,
    PlanError,
    PlanSource,
    Solution,
    depth_solutions,
    read_depth_plan,
    save_depth_plan,
)
from cachepolicies.policies import DepthSchedule, Schedule
from cachepolicies.policies.schedule import ScheduleReason
from cachepolicies.schedulers.flow_euler import FlowEuler
from cachepolicies.substitutes import ByPlace, Hold
from cachepolicies.testing.denoisers import BlockNetwork
from enabled_pipelines import one_thread  # noqa: F401  # a fixture
from tiny_pipelines import PIPELINES

SHAPE = (2, 3, 4)
STEPS = 8
SITE = "blocks.*"
LINE = "linear:correct=0.8"


@pytest.fixture(scope="module")
def samples() -> CalibrationSamples:
    """Noise of three samples."""
    return CalibrationSamples.from_seeds(range(3), SHAPE)


@pytest.fixture(scope="module")
def profile(samples: CalibrationSamples) -> Any:
    """What calibration measures for the small network."""
    return calibrate(BlockNetwork(), FlowEuler(), samples, num_steps=STEPS, progress=False)


def depth_plan(calls: tuple[int, ...], *steps: tuple[int, ...], **changes: Any) -> DepthPlan:
    """Return a plan for the three blocks of the small network, each a quarter of the work."""
    parts = tuple(PlacePart(f"blocks.{i}", 0.25, at) for i, at in enumerate(steps))
    done = (len(calls) * 0.25 + 0.25 * sum(map(len, steps))) / STEPS
    given = {
        "source": PlanSource("p", "BlockNetwork", None, None, STEPS, 3),
        "timesteps": FlowEuler().timesteps(STEPS),
        "site": SITE,
        "output": LINE,
        "inside": "hold",
        "calls": calls,
        "parts": parts,
        "work": done,
        "predicted": 0.1,
        "bound": 0.1,
    }
    return DepthPlan(**{**given, **changes})


ALL = tuple(range(STEPS))


# --- measuring -------------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """``a(x) + 3 b(x) + t``: what a place does to the output is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``(B, 2, 3, 4)``."""
        return self.a(x) + 3 * self.b(x) + 1e-3 * t.reshape(-1, 1, 1, 1)


class Twice(nn.Module):
    """Calls a module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``(B, 2, 3, 4)``."""
        output: Tensor = self.a(self.a(x))
        return output


def test_what_is_measured_is_known_of_a_sum(samples):
    model = Sum()
    seen: list[Tensor] = []

    def noting(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.clone())
        return model(x, t)

    found = measure_places(model, FlowEuler(), samples, STEPS, site="*")
    assert found.places == ("a", "b")
    assert found.shares == pytest.approx([0.5, 0.5])
    assert found.growth[0] == pytest.approx(np.ones((STEPS, 3)), rel=1e-5)
    assert found.growth[1] == pytest.approx(np.full((STEPS, 3), 3.0), rel=1e-5)
    sample(noting, FlowEuler(), samples.noise, num_steps=STEPS)
    values = torch.stack([model.b(x) for x in seen]).double()
    apart = (values[:, None] - values[None]).square().flatten(3).mean(-1).sqrt()
    assert found.distances[1] == pytest.approx(apart.numpy(), rel=1e-4, abs=1e-6)


def test_hooks_are_gone_and_the_run_was_the_models_own(samples):
    model = BlockNetwork()
    before = sample(model, FlowEuler(), samples.noise, num_steps=STEPS)
    measure_places(model, FlowEuler(), samples, STEPS, site=SITE)
    assert torch.equal(sample(model, FlowEuler(), samples.noise, num_steps=STEPS), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("model", "scheduler", "site", "error", "message"),
    [
        (BlockNetwork(), "karras-heun", SITE, SettingsError, "2 evaluations a step"),
        (lambda x, t: x, "flow-euler", SITE, NeedsError, "attribute `network`"),
        (BlockNetwork(), "flow-euler", "blocks", SettingsError, "none of modules"),
        (Twice(), "flow-euler", "*", SettingsError, "reached 2 times in a call; .* 'a#2' would be its next"),
        (BlockNetwork(), "flow-euler", f"output+{SITE}", SettingsError, "none of modules"),
    ],
)
def test_what_cannot_be_measured_is_refused(samples, model, scheduler, site, error, message):
    with pytest.raises(error, match=message):
        measure_places(model, scheduler, samples, STEPS, site=site)


# --- solving ---------------------------------------------------------------------------------------------------------


def errors_of(seed: int, places: int, steps: int) -> PlaceErrors:
    """Return errors of places that drift at random."""
    rng = np.random.default_rng(seed)
    walks = np.cumsum(rng.normal(size=(places, steps, 2, 5)), axis=1)
    apart = np.sqrt(np.square(walks[:, :, None] - walks[:, None]).mean(-1))
    shares = rng.uniform(0.1, 0.9, size=places)
    return PlaceErrors(
        tuple(f"p{i}" for i in range(places)),
        0.9 * shares / shares.sum(),
        rng.uniform(0.1, 2.0, size=(places, steps, 2)),
        apart,
    )


def by_trying(errors: PlaceErrors, weights: Any, calls: tuple[int, ...], own: float, work: float) -> float:
    """Return the smallest predicted error with these calls, from all plans that there are."""
    steps = len(weights)
    ends = (*calls, steps)
    lasting = [sum(weights[a:b]) for a, b in itertools.pairwise(ends)]
    rest = 1 - errors.shares.sum()
    options: list[list[tuple[int, float]]] = []
    for p in range(len(errors.places)):
        found = []
        for chosen in itertools.product([False, True], repeat=len(calls) - 1):
            computed = (True, *chosen)
            total, last = 0.0, 0
            for k, at in enumerate(calls):
                if computed[k]:
                    last = at
                else:
                    total += lasting[k] * errors.growth[p, at].mean() * errors.distances[p, at, last].mean()
            found.append((sum(computed), total))
        options.append(found)
    best = math.inf
    for picked in itertools.product(*options):
        spent = rest * len(calls) + sum(s * count for s, (count, _) in zip(errors.shares, picked, strict=True))
        if spent <= work * steps + 1e-9:
            best = min(best, math.hypot(own, sum(error for _, error in picked)))
    return best


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 2), st.floats(0.25, 1.0))
def test_the_plan_is_the_best_of_all(seed, places, work):
    steps = 5
    errors = errors_of(seed, places, steps)
    weights = np.random.default_rng(seed + 1).uniform(0.1, 1.0, size=steps)
    whole = [
        Solution(1, 0.9, (0,)),
        Solution(2, 0.4, (0, 2)),
        Solution(4, 0.1, (0, 1, 2, 4)),
        Solution(5, 0.0, ALL[:5]),
    ]
    found = depth_solutions(errors, tuple(range(steps, 0, -1)), weights, whole, work, Hold())
    assert found
    assert [one.predicted for one in found] == sorted(one.predicted for one in found)
    by_calls = {one.refreshes: one.predicted for one in whole}
    for one in found:
        assert one.work <= work + 1e-9
        assert one.bound <= one.predicted * (1 + 1e-9)
        assert one.bound == pytest.approx(one.predicted, rel=1e-4)
        best = by_trying(errors, weights, one.calls, by_calls[one.calls], work)
        assert one.predicted == pytest.approx(best, rel=1e-4)


def test_wrong_numbers_are_refused():
    good = errors_of(0, 2, 5)
    with pytest.raises(SettingsError, match="distances has shape"):
        evolve(good, distances=good.distances[:, 1:])
    with pytest.raises(SettingsError, match="growth has a number"):
        evolve(good, growth=good.growth * np.nan)
    with pytest.raises(SettingsError, match="sum to"):
        evolve(good, shares=np.array([0.7, 0.7]))
    levels, weights = (5.0, 4.0, 3.0, 2.0, 1.0), np.ones(5)
    for work in (0.0, 0.1, 1.5):
        with pytest.raises(SettingsError, match="one call, to 1"):
            depth_solutions(good, levels, weights, [], work, Hold())
    with pytest.raises(SettingsError, match="4 timesteps"):
        depth_solutions(good, levels[:4], weights, [], 0.5, Hold())


# --- following -------------------------------------------------------------------------------------------------------


def cached_with(model: nn.Module, plan: DepthPlan) -> CachedDenoiser:
    """Return a model that follows a plan."""
    return CachedDenoiser(model, DepthSchedule(plan), scheduler=FlowEuler())


def test_a_plan_is_followed_as_by_hand(samples):
    """Blocks at their own steps; skipped calls continue from the last two calls, corrected at the next."""
    model, calls = BlockNetwork(), (0, 1, 3, 4, 6)
    plan = depth_plan(calls, calls, (0, 3, 6), (0, 4))
    ran = dict.fromkeys(range(3), 0)
    held: dict[int, Tensor] = {}
    cached = cached_with(model, plan)
    counted = [
        block.register_forward_hook(lambda m, a, o, i=i: ran.__setitem__(i, ran[i] + 1))
        for i, block in enumerate(model.blocks)
    ]
    found = sample(cached, FlowEuler(), samples.noise, num_steps=STEPS)
    assert ran == {0: 5, 1: 3, 2: 2}
    assert cached.trace.model_calls == 5
    for handle in counted:
        handle.remove()
    step = [0]

    def standing(i: int, at: tuple[int, ...]) -> Any:
        def instead(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if step[0] in at:
                held[i] = output.clone()
            return held[i]

        return instead

    for i, at in enumerate((calls, (0, 3, 6), (0, 4))):
        model.blocks[i].register_forward_hook(standing(i, at))
    levels = FlowEuler().timesteps(STEPS)

    def parted(x: Tensor, t: Tensor) -> Tensor:
        step[0] = levels.index(float(t[0]))
        output: Tensor = model(x, t)
        return output

    outside = CachedDenoiser(
        parted, Schedule(refreshes=calls, num_steps=STEPS), substitute=LINE, scheduler=FlowEuler(), site="output"
    )
    assert torch.equal(found, sample(outside, FlowEuler(), samples.noise, num_steps=STEPS))


def test_a_plan_in_steps_alone_is_the_schedule(samples):
    calls = (0, 1, 2, 5)
    plan = depth_plan(calls, calls, calls, calls)
    assert plan.in_steps_alone
    cached = cached_with(BlockNetwork(), plan)
    other = CachedDenoiser(
        BlockNetwork(), Schedule(refreshes=calls, num_steps=STEPS), substitute=LINE, scheduler=FlowEuler()
    )
    found, expected = (sample(one, FlowEuler(), samples.noise, num_steps=STEPS) for one in (cached, other))
    assert torch.equal(found, expected)
    assert cached.trace.work == pytest.approx(plan.work)


def test_everything_computed_is_the_bare_model(samples):
    model = BlockNetwork()
    bare = sample(model, FlowEuler(), samples.noise, num_steps=STEPS)
    cached = cached_with(model, depth_plan(ALL, ALL, ALL, ALL))
    assert torch.equal(sample(cached, FlowEuler(), samples.noise, num_steps=STEPS), bare)


@frozen
class InTurns(CachePolicy):
    """Skips the call at odd steps, and computes the blocks in two steps of four only."""

    name: ClassVar[str] = "in-turns"
    grain: ClassVar[Grain] = "place"
    needs: ClassVar[Needs] = Needs(run_length=True)

    def decide(self, step: Step, state: None) -> Decision:
        """Look at step and place."""
        assert step.index is not None
        reuse = step.index % 2 == 1 if step.place == "" else step.index % 4 >= 2
        return Decision.same(reuse, ScheduleReason.REUSE if reuse else ScheduleReason.EVALUATION, step.run.decisions)


NESTED = f"output+{SITE}"


def run_of(samples: CalibrationSamples, policy: Any, **options: Any) -> tuple[Tensor, CachedDenoiser]:
    """Return samples, and what made them."""
    cached = CachedDenoiser(BlockNetwork(), policy, scheduler=FlowEuler(), **options)
    return sample(cached, FlowEuler(), samples.noise, num_steps=STEPS), cached


@pytest.mark.parametrize("policy", ["uniform:every=3", "schedule:refreshes=(0,1,4)"])
def test_with_one_decision_a_call_the_modules_follow_the_call(samples, policy):
    around, cached = run_of(samples, policy, site=NESTED)
    outside, plain = run_of(samples, policy, site="output", per_sample=False)
    assert torch.equal(around, outside)
    assert cached.trace.model_calls == plain.trace.model_calls
    assert cached.trace.work == pytest.approx(plain.trace.work)


def test_an_audit_of_the_output_changes_nothing(samples):
    """It computes everything that the call would have, and nothing of it is remembered."""
    plain, cached = run_of(samples, InTurns(), site=NESTED)
    audited, seen = run_of(samples, InTurns(), site=NESTED, audit=1.0)
    assert torch.equal(audited, plain)
    assert seen.trace.work == pytest.approx(cached.trace.work)
    errors = [r.audit.true_error[0] for r in seen.trace.records if r.audit is not None and r.place == ""]
    assert len(errors) == STEPS // 2
    assert min(errors) > 0


def test_a_correction_is_made_of_the_output_alone(samples):
    """Where only blocks are reused there is nothing to correct: their own outputs have flowed on."""
    plan = depth_plan(ALL, (0, 3), (0, 4), (0, 2))
    found, _ = run_of(samples, DepthSchedule(plan), substitute=plan.substitute)
    line = evolve(plan, output="linear", inside="linear")
    corrected = evolve(plan, output="linear", inside=LINE)
    one, other = (run_of(samples, DepthSchedule(each), substitute=each.substitute)[0] for each in (line, corrected))
    assert torch.equal(one, other)
    assert not torch.equal(found, one)
    plain, _ = run_of(samples, InTurns(), site=NESTED, substitute=ByPlace(output=LINE, inside="linear"))
    same, _ = run_of(samples, InTurns(), site=NESTED, substitute=LINE)
    assert torch.equal(plain, same)


def test_it_is_compared_with_its_own_count():
    network = BlockNetwork()

    def inputs(seeds: Sequence[int]) -> Inputs:
        return Inputs(noise=CalibrationSamples.from_seeds(seeds, SHAPE).noise)

    workload = Workload(
        name="blocks",
        denoiser=network,
        scheduler=FlowEuler(),
        num_steps=STEPS,
        latent_shape=SHAPE,
        inputs=inputs,
        decode=lambda latents: latents.flatten(2).sigmoid().repeat_interleave(8, 1).repeat_interleave(2, 2),
    )
    found = compare(workload, [Candidate("in turns", InTurns(), site=NESTED)], [0, 1], baselines=False)
    assert not found.failures
    assert any(result.label == "in turns" and result.changes for result in found.results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"substitute": LINE}, "give substitute=plan.substitute"),
        ({"substitute": f"by-place:output='{LINE}',inside=linear"}, "give substitute=plan.substitute"),
        ({"site": "output+blocks.0*"}, "do not have the same places, 'blocks.1'"),
        ({"site": SITE}, "do not have the same places, ''"),
    ],
)
def test_a_plan_serves_what_it_was_made_for(change, message):
    plan = depth_plan(ALL, ALL, (0, 2), (0,))
    given = {"scheduler": FlowEuler(), **change}
    with pytest.raises(SettingsError, match=message):
        CachedDenoiser(BlockNetwork(), DepthSchedule(plan), **given)


def test_another_run_and_another_model_are_refused(samples, profile):
    cached = cached_with(BlockNetwork(), depth_plan(ALL, ALL, (0, 2), (0,)))
    with pytest.raises(SettingsError, match="8 steps, and the run has 7"):
        sample(cached, FlowEuler(), samples.noise, num_steps=7)
    plan = depth_plan(ALL, ALL, (0, 2), (0,), source=PlanSource("p", "Other", None, None, STEPS, 3))
    with pytest.raises(SettingsError, match="made for a Other"):
        CachedDenoiser(BlockNetwork(), DepthSchedule(plan), profile=profile)
    with pytest.raises(SettingsError, match="must be a DepthPlan or the path"):
        DepthSchedule(7)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="behind 'output' stand"):
        CachedDenoiser(BlockNetwork(), "uniform:every=2", site="output+blocks[:2]")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("key", ["wan", "flux"])
def test_a_pipeline_follows_a_plan_in_place(key):
    """Wan calls twice a step for guidance; both branches follow the plan."""
    tiny = PIPELINES[key]
    pipe = tiny.build()
    bare = tiny.call(pipe, steps=6)
    network = pipe.transformer
    blocks = network.blocks if key == "wan" else network.transformer_blocks
    name = "blocks" if key == "wan" else "transformer_blocks"
    places = [f"{name}.{i}.{'ffn' if key == 'wan' else 'ff'}" for i in range(len(blocks))]
    levels: list[float] = []
    with cachepolicies.enable(pipe, "uniform:every=2", site="output") as enabled:
        tiny.call(pipe, steps=6)
        levels = list(dict.fromkeys(record.t for record in enabled.trace.records))
    calls = (0, 1, 2, 4)
    plan = DepthPlan(
        source=PlanSource("p", type(network).__name__, None, None, 6, 1),
        timesteps=levels,
        site=f"{name}.*.{'ffn' if key == 'wan' else 'ff'}",
        output="linear",
        inside="hold",
        calls=calls,
        parts=[PlacePart(place, 0.0, (0, 2)) for place in places],
        work=4 / 6,
        predicted=0.0,
        bound=0.0,
    )
    ran = {"network": 0, "part": 0}
    module = blocks[0].ffn if key == "wan" else blocks[0].ff
    handle = module.register_forward_hook(lambda m, a, o: ran.__setitem__("part", ran["part"] + 1))
    with cachepolicies.enable(pipe, DepthSchedule(plan)) as enabled:
        first = tiny.call(pipe, steps=6)
        branches = len({record.branch for record in enabled.trace.records})
        assert enabled.trace.model_calls == 4 * branches
        assert ran["part"] == 2 * branches
        assert torch.equal(tiny.call(pipe, steps=6), first)
    handle.remove()
    assert not torch.equal(first, bare)
    assert torch.equal(tiny.call(pipe, steps=6), bare)


# --- from the measurement to the file --------------------------------------------------------------------------------


def test_a_plan_is_made_saved_and_followed(samples, profile, tmp_path):
    model = BlockNetwork()
    plan = plan_depth(profile, model, FlowEuler(), samples, 0.6, site=SITE, output=LINE, candidates=2, progress=False)
    assert plan.work <= 0.6
    path = save_depth_plan(plan, tmp_path / "deep.json")
    assert read_depth_plan(path) == plan
    cached = CachedDenoiser(model, "depth-schedule", plan=str(path), scheduler=FlowEuler(), profile=profile)
    sample(cached, FlowEuler(), samples.noise, num_steps=STEPS)
    assert cached.trace.work == pytest.approx(plan.work, abs=1e-6)


def test_a_part_is_left_out_where_that_is_better(samples, profile):
    """A block that never changes what it returns costs nothing to hold: its work buys calls."""

    class Still(nn.Module):
        constant: Tensor
        wide: nn.Linear

        def __init__(self) -> None:
            super().__init__()
            self.inner = BlockNetwork()
            self.wide = nn.Linear(400, 400, bias=False).requires_grad_(False)
            self.register_buffer("constant", torch.ones(1, 400))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            still = self.wide(self.constant.expand(x.shape[0], -1))
            return self.inner(x, t) + still.mean(dim=1).reshape(-1, 1, 1, 1)

    model = Still()
    known = calibrate(model, FlowEuler(), samples, num_steps=STEPS, progress=False)
    plan = plan_depth(known, model, FlowEuler(), samples, 0.5, site="wid*", output="hold", progress=False)
    assert not plan.in_steps_alone
    assert plan.gained > 0
    assert plan.parts[0].steps == (0,)
    assert len(plan.calls) > 4


def test_a_plan_that_cannot_be_is_refused(samples, profile):
    model = BlockNetwork()
    for work, message in ((0.01, "one call, to 1"), (1.5, "one call, to 1")):
        with pytest.raises(SettingsError, match=message):
            plan_depth(profile, model, FlowEuler(), samples, work, site=SITE, progress=False)
    with pytest.raises(SettingsError, match="at least 2 and 1"):
        plan_depth(profile, model, FlowEuler(), samples.rows(0, 1), 0.5, site=SITE, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": [1, 2]}, "field 'calls'"),
        ({"calls": [0, 1, 2, 9]}, "field 'calls'|step 9"),
        ({"parts": []}, "names no place"),
        ({"work": 0.1}, "field 'work'"),
        ({"predicted": "x"}, "expected float"),
        ({"version": 2}, "field 'version'"),
        ({"timesteps": [1.0] * STEPS}, "does not decrease"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path, change, message):
    path = save_depth_plan(depth_plan((0, 1, 4), (0, 1), (0,), (0, 4)), tmp_path / "p.json")
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, **change}))
    with pytest.raises(PlanError, match=message):
        read_depth_plan(path)


def test_a_place_beyond_the_calls_is_refused():
    with pytest.raises(PlanError, match="computed at step 3, where the network is not"):
        depth_plan((0, 1, 4), (0, 3), (0,), (0,))
    with pytest.raises(PlanError, match="expected 0 to 1"):
        PlacePart("a", 1.5, (0,))


def test_the_substitute_of_a_place_is_its_own():
    both = ByPlace(output=LINE, inside="hold")
    assert both.at("").name == "linear"
    assert both.at("blocks.0").name == "hold"
    assert both.corrects
    assert both.history == 3
    assert not ByPlace(output="hold", inside=LINE).corrects


def test_the_page_says_what_was_measured():
    root = Path(__file__).parents[1]
    with (root / "bench" / "results" / "depth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert all(float(row["step_and_depth"]) >= float(row["steps_alone"]) for row in rows)
    assert all(float(row["bound_gap"]) < 1e-4 for row in rows)
    best = [float(row["best_deep"]) for row in rows]
    page = " ".join((root / "docs" / "usage" / "planning.md").read_text().split())
    assert f"from {min(best):+.1f} to {max(best):+.1f} dB of it" in page
    assert f"{sum(best) / len(best):+.1f} dB in the mean" in page
    assert {float(row["computed"]) for row in rows} == {1.0}
