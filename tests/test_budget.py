"""The one knob: what it may be, what it costs, and that every policy with a threshold meets it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

import cachepolicies
from cachepolicies import CachedDenoiser, NeedsError, SettingsError, load_profile, sample
from cachepolicies.base.budget import Budget, as_budget
from cachepolicies.contracts.setup import Setup
from cachepolicies.planning.replay import CalibrationRuns
from cachepolicies.policies import SenCache, Uniform
from cachepolicies.reference import workloads
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, Counted, mixture

# --- what it may be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_as", "evaluations"),
    [
        (22, 22),
        (1, 1),
        (50, 50),
        (0.4, 20),
        ("0.4", 20),
        ("40%", 20),
        ("2.5x", 20),
        ("22", 22),
        (np.int64(7), 7),
        (1.0, 50),
    ],
)
def test_what_a_budget_may_be(given_as, evaluations):
    budget = as_budget(given_as)
    assert budget is not None
    assert budget.of_run(50) == evaluations


@pytest.mark.parametrize(
    "wrong",
    [0, -3, 0.0, -0.1, 1.5, 22.0, "0", "0x", "0.5x", "x", "many", "", True, None, float("nan"), [22], "45dB", "101%"],
)
def test_what_it_may_not_be(wrong):
    if wrong is None:
        assert as_budget(None) is None
        return
    with pytest.raises(SettingsError, match=r"budget is .*(expected|lies between|at least)"):
        as_budget(wrong)


@pytest.mark.parametrize("wrong", ["45", "dB", "-3dB", 45, "0rms", "infdB", None, "2x"])
def test_what_a_target_may_not_be(wrong):
    if wrong is None:
        return
    with pytest.raises(SettingsError, match="expected a positive number with its unit"):
        as_budget(None, wrong)


def test_both_are_refused():
    with pytest.raises(SettingsError, match="either budget or target"):
        as_budget(22, "45dB")


def test_more_than_the_run_has_is_refused_with_its_length():
    with pytest.raises(SettingsError, match="budget=60 is more than the 50 steps"):
        Budget(evaluations=60, given="60").of_run(50)


@given(st.floats(0.01, 1.0), st.integers(1, 400), st.floats(0.05, 1.0))
def test_a_fraction_is_of_the_work(fraction, steps, skipped):
    """B evaluations and N - B reuses take the work that was asked for, to the nearest evaluation."""
    budget = Budget(fraction=fraction, given=str(fraction))
    least = 1.0 - skipped * (steps - 1) / steps
    try:
        count = budget.of_run(steps, skipped)
    except SettingsError:
        assert fraction < least + 0.5 * skipped / steps
        return
    work = (count + (steps - count) * (1.0 - skipped)) / steps
    assert abs(work - fraction) <= 0.5 * skipped / steps + 1e-9


# --- every policy with a threshold meets it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "budget"),
    [
        *product(["sencache", "seacache", "magcache", "uniform", "schedule", None], [10, 17, 31, 0.25, "2.5x"]),
        *product(["sencache:preset=constant", "sencache:preset=paper"], [10, 31]),
    ],
)
def test_it_is_met_on_other_samples(policy, budget):
    workload = workloads.sound_transformer()
    drawn = workload.draw(range(2000, 2008))
    site = "blocks" if policy == "magcache" else "output"
    cached = CachedDenoiser(
        workload.denoiser,
        policy,
        budget=budget,
        profile="sound-transformer",
        scheduler=workload.scheduler,
        site=site,
        learn=False,
    )
    with torch.no_grad():
        sample(cached, workload.scheduler, drawn.noise, *drawn.args, num_steps=50, **drawn.kwargs)
    asked = as_budget(budget)
    assert asked is not None
    work = cached.trace.work
    assert work is not None
    assert (
        abs(50 * work - asked.of_run(50)) <= 1.0 if site == "output" else abs(cached.nfe - asked.of_run(50, 0.97)) <= 2
    )


def test_what_was_given_is_not_overruled(mixture_profile):
    model = Counted(mixture())
    with pytest.raises(SettingsError, match=r"epsilon=0.1 beside a budget"):
        CachedDenoiser(model, "sencache", budget=10, profile=mixture_profile, epsilon=0.1)
    with pytest.raises(SettingsError, match="names no setting that a budget could be solved for"):
        CachedDenoiser(model, "never", budget=10, profile=mixture_profile)
    with pytest.raises(SettingsError, match="every=2 beside a budget"):
        CachedDenoiser(model, "uniform:every=2", budget=10, profile=mixture_profile)
    with pytest.raises(SettingsError, match="budget=60 is more than the 50 steps"):
        CachedDenoiser(model, budget=60, profile=mixture_profile)


def test_uniform_needs_one_of_them():
    with pytest.raises(SettingsError, match="or give a budget"):
        CachedDenoiser(Counted(mixture()), "uniform")
    cached = CachedDenoiser(Counted(mixture()), "uniform", budget=0.3)
    x = sample(cached, FlowEuler(), torch.randn(2, *SHAPE), num_steps=20)
    assert torch.isfinite(x).all()
    assert cached.nfe == 6
    assert Uniform(evaluations=3).resolve(Setup()) == Uniform(evaluations=3)


def test_a_quality_needs_trials(mixture_profile):
    with pytest.raises(NeedsError, match="target '45dB' needs trials"):
        CachedDenoiser(Counted(mixture()), target="45dB", profile=mixture_profile)
    with pytest.raises(NeedsError, match="needs a profile with trials"):
        CachedDenoiser(Counted(mixture()), target="45dB", learn=False)
    cached = CachedDenoiser(workloads.sound_transformer().denoiser, target="45dB", profile="sound-transformer")
    assert "of 50 steps are evaluated" in cached.choice.sentence


def test_a_quality_that_nothing_reaches_evaluates_everything():
    workload = workloads.sound_transformer()
    cached = CachedDenoiser(
        workload.denoiser, target="140dB", profile="sound-transformer", scheduler=workload.scheduler
    )
    assert "50 of 50 steps are evaluated" in repr(cached)


def test_a_policy_whose_table_is_missing_says_which(mixture_profile):
    bare = evolve(
        mixture_profile, tables={n: t for n, t in mixture_profile.tables.items() if n in ("displacement", "change")}
    )
    with pytest.raises(NeedsError, match="'filtered_change' is needed"):
        CachedDenoiser(Counted(mixture()), "seacache", budget=10, profile=bare, scheduler=FlowEuler())
    with pytest.raises(NeedsError, match="needs 'output_l1'"):
        CachedDenoiser(Counted(mixture()), "easycache", budget=10, profile=bare)
    without = CachedDenoiser(Counted(mixture()), "easycache", budget=10)
    with pytest.raises(NeedsError, match="met by solving for its threshold on the runs of a measured profile"):
        sample(without, FlowEuler(), torch.randn(1, *SHAPE), num_steps=20)


# --- the replay ------------------------------------------------------------------------------------------------------


def test_replayed_points_have_the_distances_that_were_measured(mixture_profile):
    runs = CalibrationRuns(mixture_profile)
    for points, table in ((runs.latents, "displacement"), (runs.outputs, "change")):
        measured = np.asarray(mixture_profile.tables[table])
        for s in range(mixture_profile.samples):
            each = points[:, s]
            found = (torch.cdist(each, each) / each.shape[1] ** 0.5).numpy()
            np.testing.assert_allclose(found, measured[:, :, s], atol=1e-5 * measured.max())


def test_a_replayed_policy_sees_what_reuse_hands_on(mixture_profile):
    seen = []

    class Every(Uniform):
        def observe(self, step, decision, output, state):
            seen.append(output)
            return super().observe(step, decision, output, state)

    runs = CalibrationRuns(mixture_profile)
    counts = runs.evaluations(Every(every=3))
    assert counts.tolist() == [float(len(range(0, len(seen), 3)))] * len(counts)
    for k, output in enumerate(seen):
        assert torch.equal(output, runs.outputs[k - k % 3])


def test_a_replay_decides_as_the_runs_did():
    """On the calibration's own samples a constant tolerance takes the evaluations that its replay says."""
    workload, profile = workloads.sound_transformer(), load_profile("sound-transformer")
    drawn = workload.draw(profile.seeds)
    rule = SenCache(epsilon=0.3, epsilon_start=0.3)
    cached = CachedDenoiser(workload.denoiser, rule, profile=profile, scheduler=workload.scheduler, substitute="hold")
    with torch.no_grad():
        sample(cached, workload.scheduler, drawn.noise, *drawn.args, num_steps=50, **drawn.kwargs)
    replayed = CalibrationRuns(profile).evaluations(cached.policy)
    assert np.abs(replayed - np.array(cached.trace.nfe_per_sample)).mean() <= 1.0


def test_settings_without_a_policy_are_sencache(mixture_profile):
    assert isinstance(CachedDenoiser(Counted(mixture()), profile=mixture_profile, epsilon=0.2).settings, SenCache)


def test_plans_take_the_same_words(mixture_profile):
    made = [cachepolicies.plan(mixture_profile, budget).refreshes for budget in (20, 0.4, "2.5x", "40%")]
    assert len(set(made)) == 1
