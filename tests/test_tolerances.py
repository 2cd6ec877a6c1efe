"""Tolerance schedules: the registry, the built-in ones, and everything that `epsilon=` takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from cachepolicies import (
    CachedDenoiser,
    Needs,
    NeedsError,
    PluginError,
    SettingsError,
    Setup,
    UnknownNameError,
    sample,
)
from cachepolicies.base.layout import Layout
from cachepolicies.contracts.step import RunInfo, Step
from cachepolicies.planning.io import save_plan
from cachepolicies.planning.tolerance_curve import ToleranceCurve
from cachepolicies.policies import SenCache
from cachepolicies.registry.load import load_plugins
from cachepolicies.registry.registry import Entry, Source
from cachepolicies.scores import Bound
from cachepolicies.substitutes import Hold
from cachepolicies.tolerances import (
    Constant,
    OfT,
    Optimal,
    Planned,
    Tolerance,
    ToleranceSchedule,
    TwoPhase,
    as_tolerance,
)
from denoisers import SHAPE, Counted, mixture
from made_plans import plan_of
from made_profiles import linear_profile

pytestmark = pytest.mark.filterwarnings("ignore::cachepolicies.CacheWarning")

TIMESTEPS = tuple(np.linspace(1000.0, 50.0, 20).tolist())
PROFILE = linear_profile(TIMESTEPS, alpha_x=0.2, alpha_t=1e-4)
CURVE = ToleranceCurve((900.0, 100.0), (0.1, 0.3))


def run_info(timesteps=TIMESTEPS) -> RunInfo:
    return RunInfo(1000.0, timesteps, Layout(2), (2, *SHAPE), torch.float32, torch.device("cpu"), PROFILE)


def tolerances(schedule, timesteps=TIMESTEPS) -> list[float]:
    """The tolerance at every step of a run."""
    run = run_info(timesteps)
    at = schedule.start(run, Setup(PROFILE, Hold()), Bound(PROFILE), 3)
    x = torch.zeros(2, *SHAPE)
    return [at(Step(x, t, "default", run.index(t), run, lambda tensors: [])) for t in TIMESTEPS]


# -- the built-in ones -------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6))
def test_constant(epsilon):
    assert tolerances(Constant(epsilon)) == [epsilon] * 20


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 1))
def test_two_phase_is_strict_for_the_first_part_of_the_steps(epsilon, start, part):
    strict = round(part * 20)
    found = tolerances(TwoPhase(epsilon, start, part))
    assert found == [min(start, epsilon)] * strict + [epsilon] * (20 - strict)


def test_two_phase_is_strict_in_t_where_the_run_is_not_declared():
    found = tolerances(TwoPhase(0.07), timesteps=None)
    assert found == [0.01 if t > 800 else 0.07 for t in TIMESTEPS]


def test_a_function_of_t():
    assert tolerances(OfT(lambda t: t / 1000)) == [t / 1000 for t in TIMESTEPS]
    assert tolerances(as_tolerance(lambda t: np.float32(0.25))) == [0.25] * 20


def test_a_plan_s_curve_is_read_by_t():
    found = tolerances(Planned(plan=plan_of(TIMESTEPS, (0, 4), tolerance=CURVE)))
    expected = np.interp(TIMESTEPS, CURVE.t[::-1], CURVE.epsilon[::-1])
    assert found == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "epsilon must be a finite number >= 0, got -1"),
        (lambda: Constant(True), "epsilon must be a finite number >= 0, got True"),
        (lambda: TwoPhase(0.1, math.inf), "epsilon_start must be a finite number >= 0"),
        (lambda: TwoPhase(0.1, 0.1, 1.5), "start_fraction must be a fraction"),
        (lambda: OfT(3), "function must be a function of t, got 3"),  # type: ignore[arg-type]
        (lambda: OfT(float), "function must be a function of t"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


# -- what epsilon= takes -----------------------------------------------------------------------------------------------


def planned(value: Tolerance) -> Planned:
    made = as_tolerance(value)
    assert isinstance(made, Planned)
    return made


def test_everything_that_stands_for_a_tolerance(tmp_path):
    plan = plan_of(TIMESTEPS, (0, 4), tolerance=CURVE)
    path = save_plan(plan, tmp_path / "plan.json")
    assert as_tolerance(0.1) == Constant(0.1)
    assert as_tolerance(np.float32(0.5)) == Constant(0.5)
    assert as_tolerance("two-phase") == TwoPhase()
    assert as_tolerance("constant:epsilon=0.2") == Constant(0.2)
    assert as_tolerance("optimal:nfe=22") == Optimal(nfe=22)
    assert planned(f"plan:path={path}").curve == CURVE
    assert planned(str(path)).curve == CURVE
    assert planned(path).curve == CURVE
    assert planned(plan).curve == CURVE
    own = TwoPhase(0.3)
    assert as_tolerance(own) is own


@pytest.mark.parametrize("value", [None, [0.1], {"epsilon": 0.1}, object(), Constant, float])
def test_what_is_no_tolerance(value):
    with pytest.raises(SettingsError, match=r"a tolerance is a number >= 0, the name.*`cachepolicies schedules`"):
        as_tolerance(value)


@pytest.mark.parametrize("value", [True, np.bool_(True), math.nan, -0.5])
def test_numbers_that_are_no_tolerance(value):
    with pytest.raises(SettingsError, match="epsilon must be a finite number >= 0"):
        as_tolerance(value)


def test_names():
    assert {"constant", "optimal", "plan", "two-phase"} <= set(load_plugins().tolerances.names())
    with pytest.raises(UnknownNameError, match="unknown tolerance schedule 'optimum': did you mean 'optimal'"):
        as_tolerance("optimum:nfe=22")
    with pytest.raises(SettingsError, match="tolerance schedule 'two-phase': unknown setting 'epsilom'"):
        as_tolerance("two-phase:epsilom=1")
    with pytest.raises(ValueError, match=r"nowhere\.json: no such file"):
        as_tolerance(Path("nowhere.json"))


def schedule_in(spec: str) -> ToleranceSchedule:
    policy = load_plugins().policies.create(spec)
    assert isinstance(policy, SenCache)
    return policy.made_schedule()


@pytest.mark.parametrize(
    ("spec", "schedule"),
    [
        ("sencache:epsilon=0.3", TwoPhase(0.3)),
        ("sencache:epsilon=0.3,epsilon_start=0.2,start_fraction=0.5", TwoPhase(0.3, 0.2, 0.5)),
        ("sencache:epsilon=two-phase", TwoPhase()),
        ("sencache:epsilon=constant:epsilon=0.3,max_reuse=5", Constant(0.3)),
        ("sencache:epsilon=optimal:nfe=22", Optimal(nfe=22)),
        ("sencache:epsilon='optimal:nfe=22,weights=uniform',max_reuse=5", Optimal(nfe=22, weights="uniform")),
        ("sencache:epsilon=optimal:target=0.02,score=bound", Optimal(target=0.02)),
    ],
)
def test_specs_of_the_policy(spec, schedule):
    assert schedule_in(spec) == schedule


def test_a_plan_file_in_the_spec_of_the_policy(tmp_path, monkeypatch):
    save_plan(plan_of(TIMESTEPS, (0, 4), tolerance=CURVE), tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    for spec in ("sencache:epsilon=plan.json", "sencache:epsilon=plan:path=plan.json,max_reuse=4"):
        made = schedule_in(spec)
        assert isinstance(made, Planned)
        assert made.curve == CURVE


@pytest.mark.parametrize("given", [{"epsilon_start": 0.01}, {"start_fraction": 0.0}])
@pytest.mark.parametrize("epsilon", ["two-phase", lambda t: 0.1, Constant(0.1)])
def test_a_stricter_start_goes_with_a_number_only(epsilon, given):
    with pytest.raises(SettingsError, match=f"{next(iter(given))}=0.* a stricter start goes with a number only"):
        SenCache(epsilon=epsilon, **given)


# -- through the policy ------------------------------------------------------------------------------------------------


def decided(epsilon, **settings) -> list[tuple[float, float]]:
    """t and tolerance of every decision that compared one."""
    denoiser = CachedDenoiser(Counted(mixture()), "sencache", profile=PROFILE, epsilon=epsilon, **settings)
    sample(denoiser, "flow-euler", torch.randn(2, *SHAPE), num_steps=20)
    return [(record.t, record.tolerance[0]) for record in denoiser.trace.records if record.tolerance is not None]


@pytest.mark.parametrize("epsilon", [lambda t: t / 5000, OfT(lambda t: t / 5000)])
def test_a_function_is_used_as_it_is(epsilon):
    found = decided(epsilon)
    assert len(found) == 19
    assert all(tolerance == t / 5000 for t, tolerance in found)


def test_a_schedule_is_used_as_it_is():
    assert {tolerance for _, tolerance in decided("constant:epsilon=0.3")} == {0.3}
    assert {tolerance for _, tolerance in decided(0.3)} == {0.01, 0.3}
    assert decided("two-phase:epsilon=0.3") == decided(0.3)


@frozen
class Halving(ToleranceSchedule):
    """Somebody's schedule: half the tolerance at every step, known by its place in the run."""

    name: ClassVar[str] = "halving"
    first: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(tables=("change",), run_length=True)

    def start(self, run, setup, score, max_reuse):
        assert setup.profile is run.profile
        assert isinstance(setup.substitute, Hold)
        assert setup.scheduler.name == "flow-euler"
        assert (score.name, max_reuse) == ("bound", 3)
        return lambda step: self.first / 2**step.index


@pytest.fixture
def third_party(monkeypatch):
    """A registry in which somebody has registered a schedule, a plain function and something else."""
    source = Source("acme", "1.0", "acme = acme")
    more: list[Entry[Any]] = [
        Entry("halving", Halving, source, "Halves."),
        Entry("line", lambda slope=1.0: lambda t: slope * t / 1000, source, "A line."),
        Entry("broken", lambda: 3.0, source, "No schedule."),
        Entry("lost", lambda: lambda t: None, source, "No tolerance."),
    ]
    loaded = load_plugins()
    monkeypatch.setattr(
        "cachepolicies.registry.load._loaded", evolve(loaded, tolerances=loaded.tolerances.extended(more))
    )


@pytest.mark.usefixtures("third_party")
def test_a_third_party_adds_one_in_one_function():
    found = decided("line:slope=0.5")
    assert len(found) == 19
    assert all(tolerance == 0.5 * t / 1000 for t, tolerance in found)
    with pytest.raises(NeedsError, match="'change'"):
        decided("halving")
    table = np.ones((20, 20, 2)) - np.eye(20)[:, :, None]
    profile = evolve(PROFILE, tables={"change": table})
    denoiser = CachedDenoiser(Counted(mixture()), "sencache", profile=profile, epsilon="halving:first=4")
    with pytest.raises(NeedsError, match="needs the run length"):
        denoiser(torch.zeros(2, *SHAPE), 1000.0)
    sample(denoiser, "flow-euler", torch.randn(2, *SHAPE), num_steps=20)
    held = [record.tolerance for record in denoiser.trace.records[1:]]
    assert [tolerance[0] for tolerance in held if tolerance] == [4.0 / 2**k for k in range(1, 20)]


@pytest.mark.usefixtures("third_party")
def test_a_third_party_s_mistakes():
    with pytest.raises(PluginError, match="tolerance schedule 'broken' made a float; a factory returns"):
        as_tolerance("broken")
    with pytest.raises(SettingsError, match=r"epsilon\(1000\) returned None; a tolerance is finite and >= 0"):
        decided("lost")

    class Odd(Halving):
        needs = Needs()

        def start(self, run, setup, score, max_reuse):
            return lambda step: -1.0

    with pytest.raises(SettingsError, match=r"tolerance schedule 'halving' \(1000\) returned -1\.0"):
        decided(Odd())


def test_a_plan_for_another_substitute_is_refused_at_set_up():
    plan = plan_of(TIMESTEPS, (0, 4), substitute="linear", tolerance=CURVE)
    with pytest.raises(SettingsError, match="made for the substitute 'linear'"):
        CachedDenoiser(Counted(mixture()), "sencache", profile=PROFILE, epsilon=plan)


def test_a_plan_without_a_curve_is_refused_at_once():
    with pytest.raises(SettingsError, match="made by hand"):
        SenCache(epsilon=plan_of(TIMESTEPS, (0, 4)))
