"""What plans are expected to give on new samples, and plans that are asked for by their quality."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cachepolicies import CachedDenoiser, sample
from cachepolicies.base.errors import InputError, NeedsError, SettingsError
from cachepolicies.calibration import CalibrationSamples, calibrate, try_plans
from cachepolicies.cli import app
from cachepolicies.planning import best_plan, plan, read_plan, save_plan
from cachepolicies.planning.expectation import CONFIDENCE, CONTENT, tolerance_factor
from cachepolicies.policies import Schedule
from cachepolicies.profiles import read_profile
from cachepolicies.profiles.subset import of_samples
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, mixture
from made_profiles import outputs, profile_of

LINE = "linear:correct=0.8"
STEPS = 20


def samples_of(seeds):
    return CalibrationSamples.from_seeds(tuple(seeds), SHAPE)


def decode(latents):
    return torch.sigmoid(latents)[:, None]


@pytest.fixture(scope="module")
def tried():
    denoiser = mixture()
    profile = calibrate(denoiser, FlowEuler(), samples_of(range(5)), num_steps=STEPS, weights=1, progress=False)
    return denoiser, try_plans(
        profile, denoiser, FlowEuler(), samples_of(range(8)), substitute=LINE, decode=decode, progress=False
    )


def test_a_trial_is_the_error_of_a_run_with_the_plan_of_the_others(tried):
    denoiser, profile = tried
    trials = profile.trials[0]
    assert (trials.seeds, trials.samples, trials.rms.shape) == (tuple(range(8)), 8, (len(trials.budgets), 8))
    for seed, known in ((2, of_samples(profile, [0, 1, 3, 4])), (6, profile)):
        for row, budget in enumerate(trials.budgets):
            made = plan(known, budget, substitute=LINE)
            cached = CachedDenoiser(
                denoiser, Schedule(plan=made), profile=profile, substitute=LINE, scheduler=FlowEuler()
            )
            noise = samples_of([seed]).noise
            bare = sample(denoiser, FlowEuler(), noise, num_steps=STEPS)
            off = sample(cached, FlowEuler(), noise, num_steps=STEPS) - bare
            assert trials.rms[row, seed] == pytest.approx(off.double().square().mean().sqrt().item(), rel=1e-4)
    assert trials.picture_rms is not None
    assert (trials.picture_rms <= trials.rms).all()


def test_expected_at_a_tried_budget_is_the_mean_and_tolerance_limit_of_the_trials(tried):
    _, profile = tried
    trials = profile.trials[0]
    made = plan(profile, trials.budgets[1], substitute=LINE)
    decibels = -20 * np.log10(trials.rms[1])
    assert made.expected is not None
    assert made.expected.error.mean == pytest.approx(decibels.mean())
    reach = tolerance_factor(8) * decibels.std(ddof=1)
    assert made.expected.error.low == pytest.approx(decibels.mean() - reach)
    assert made.expected.error.high == pytest.approx(decibels.mean() + reach)
    between = made.at_budget(trials.budgets[1] + 1)
    assert between.expected is not None
    assert made.at_budget(STEPS).expected is None
    assert made.at_budget(trials.budgets[0] - 1).expected is None


def test_the_tolerance_factor_holds_nine_in_ten_with_the_stated_confidence():
    rng = np.random.default_rng(0)
    for count in (4, 8, 16):
        draws = rng.standard_normal((20000, count))
        low = draws.mean(axis=1) - tolerance_factor(count) * draws.std(axis=1, ddof=1)
        from scipy.stats import norm

        assert np.mean(norm.sf(low) >= CONTENT) == pytest.approx(CONFIDENCE, abs=0.01)


def test_a_target_takes_the_fewest_evaluations_that_are_expected_to_reach_it(tried):
    _, profile = tried
    curve = plan(profile, STEPS, substitute=LINE).curve
    for wanted in (25.0, 40.0, 55.0):
        made = plan(profile, target=f"{wanted}dB", substitute=LINE)
        assert (made.target, made.target_unit) == (wanted, "dB")
        for point in curve:
            psnr = None if point.expected is None else point.expected.psnr
            good = psnr is not None and psnr.mean >= wanted and psnr.low >= wanted - 3
            if point.budget < made.budget:
                assert not good
            elif point.budget == made.budget:
                assert good or point.predicted == 0
    made = plan(profile, target="0.01rms", substitute=LINE)
    assert made.expected is None or made.expected.error.mean >= 40.0
    assert plan(profile, target="1000dB", substitute=LINE).refreshes == tuple(range(STEPS))


def test_expectations_survive_the_disk(tried, tmp_path):
    made = plan(tried[1], target="40dB", substitute=LINE)
    again = read_plan(save_plan(made, tmp_path / "plan.json"))
    assert again == made
    assert again.expected == made.expected


@pytest.mark.parametrize(
    "change",
    [
        {"substitute": "hold"},
        {"objective": "sum"},
        {"weights": "measured"},
        {"max_reuse": 3},
        {"always": (-1,)},
    ],
)
def test_other_plans_expect_nothing_and_refuse_a_target(tried, change):
    _, profile = tried
    assert plan(profile, 8, **{"substitute": LINE, **change}).expected is None
    with pytest.raises(NeedsError, match=r"target '40dB' needs trials of such plans .*linear:correct=0.8, signed"):
        plan(profile, target="40dB", **{"substitute": LINE, **change})


def test_a_psnr_needs_pictures(tried):
    _, profile = tried
    blind = attrs.evolve(profile, trials=(attrs.evolve(profile.trials[0], picture_rms=None),))
    assert plan(blind, target="0.05rms", substitute=LINE).budget <= STEPS
    with pytest.raises(NeedsError, match="decoded none"):
        plan(blind, target="40dB", substitute=LINE)


@pytest.mark.parametrize("target", ["40", "dB", "-3dB", "infdB", "0rms", "40 ssim", "nandB"])
def test_a_target_of_another_form(tried, target):
    with pytest.raises(SettingsError, match="expected a positive number with its unit"):
        plan(tried[1], target=target, substitute=LINE)


def test_trials_of_the_same_plans_are_replaced(tried):
    denoiser, profile = tried
    again = try_plans(
        profile, denoiser, FlowEuler(), samples_of(range(20, 24)), substitute=LINE, budgets=(9, 5), progress=False
    )
    assert [t.budgets for t in again.trials] == [(5, 9)]
    both = try_plans(
        profile, denoiser, FlowEuler(), samples_of(range(3)), substitute="hold", budgets=(9,), progress=False
    )
    assert [t.substitute for t in both.trials] == [LINE, "hold"]


def test_what_trials_refuse(tried):
    denoiser, profile = tried
    one = of_samples(profile, [0])
    with pytest.raises(SettingsError, match="is the only calibration sample"):
        try_plans(one, denoiser, FlowEuler(), samples_of([0]), substitute=LINE, progress=False)
    with pytest.raises(SettingsError, match="budgets is empty"):
        try_plans(profile, denoiser, FlowEuler(), samples_of([9]), budgets=(), substitute=LINE, progress=False)
    with pytest.raises(InputError, match="decoded sample 0 is not finite"):
        try_plans(
            profile,
            denoiser,
            FlowEuler(),
            samples_of([9]),
            budgets=(5,),
            substitute=LINE,
            decode=lambda x: x / 0,
            progress=False,
        )


def test_two_samples_say_nothing_of_others(tried):
    denoiser, profile = tried
    few = try_plans(profile, denoiser, FlowEuler(), samples_of([30, 31]), substitute=LINE, budgets=(8,), progress=False)
    assert plan(few, 8, substitute=LINE).expected is None


@given(st.integers(2, 5), st.data())
def test_a_subset_of_samples_is_what_they_alone_give(count, data):
    y = outputs(steps=6, samples=count)
    chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    whole = profile_of(y, seeds=tuple(range(count)))
    part = of_samples(whole, chosen)
    alone = profile_of(y[:, chosen], seeds=tuple(chosen))
    assert part.seeds == alone.seeds
    assert all(np.array_equal(part.tables[name], alone.tables[name]) for name in ("change", "displacement"))
    assert part.curves == alone.curves


@pytest.mark.parametrize("chosen", [[], [0, 0], [3], [-1]])
def test_samples_that_are_not_there(chosen):
    with pytest.raises(SettingsError, match="give different indices from 0 to 2, at least one"):
        of_samples(profile_of(outputs(samples=3)), chosen)


def test_the_best_plan_is_the_one_that_trials_expect_most_of(tried):
    denoiser, profile = tried
    both = try_plans(profile, denoiser, FlowEuler(), samples_of(range(8)), substitute="hold", progress=False)
    held, line = both.trials[1], both.trials[0]
    assert (held.substitute, line.substitute) == ("hold", LINE)
    # as if holding were better where few steps are evaluated, and nowhere else
    few = len(held.budgets) // 2
    rms = held.rms.copy()
    rms[:few], rms[few:] = line.rms[:few] / 10, line.rms[few:] * 10
    mixed = attrs.evolve(both, trials=(line, attrs.evolve(held, rms=rms, picture_rms=None)))
    blind = attrs.evolve(mixed, trials=(attrs.evolve(line, picture_rms=None), mixed.trials[1]))
    for budget in held.budgets:
        made = best_plan(blind, budget)
        assert made.substitute == ("hold" if budget < held.budgets[few] else LINE)
        assert made == plan(blind, budget, substitute=made.substitute)
    for target in ("0.1rms", "0.02rms"):
        made = best_plan(blind, target=target)
        alone = [plan(blind, target=target, substitute=t.substitute) for t in blind.trials]
        assert made.evaluations == min(one.evaluations for one in alone)
        assert made in alone


def test_what_the_best_plan_refuses(tried):
    _, profile = tried
    for budget, target in ((None, None), (5, "40dB")):
        with pytest.raises(SettingsError, match="give either budget or target"):
            best_plan(profile, budget, target=target)
    with pytest.raises(SettingsError, match=r"target is 0\.1; plans of several substitutes are compared by '45dB'"):
        best_plan(profile, target=0.1)  # type: ignore[arg-type]
    with pytest.raises(NeedsError, match="has no trials to choose a substitute by"):
        best_plan(attrs.evolve(profile, trials=()), 5)


WORKLOAD = """
import torch
from cachepolicies.comparison import Inputs, Workload


def inputs(seeds):
    rows = [torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Inputs(noise=torch.stack(rows))


def build():
    return Workload("w", denoise, "flow-euler", 12, (1, 4, 4), inputs, lambda x: x[:, 0].sigmoid())


def denoise(x, t):
    return torch.sin(3 * x) + x * (t[:, None, None, None] / 1000) ** 2
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    (tmp_path / "workload_to_try.py").write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments, code=0):
        found = CliRunner().invoke(app, [*map(str, arguments)])
        assert found.exit_code == code, found.output
        return found.stdout if code == 0 else found.stderr

    return run


TARGET = "workload_to_try:build"


def test_a_calibration_ends_with_trials_that_a_target_needs(command):
    command("calibrate", TARGET, "--samples", 3, "--out", "p.json")
    (trials,) = read_profile("p.json").trials
    assert trials.seeds == (*range(1000, 1003), *range(1003, 1011))
    assert trials.substitute == "linear:time=path,correct=0.8"
    assert "dB, nine in ten above" in command(
        "plan", "p.json", "--target", "20dB", "--substitute", trials.substitute, "--out", "plan.json"
    )
    assert read_plan("plan.json").target_unit == "dB"


def test_trials_are_added_to_a_profile_that_has_none(command):
    command("calibrate", TARGET, "--samples", 3, "--trials", "none", "--out", "p.json")
    before = read_profile("p.json")
    assert before.trials == ()
    refused = command("plan", "p.json", "--target", "20dB", "--substitute", LINE, code=2)
    assert "cachepolicies trials" in refused
    shown = command(
        "trials", TARGET, "--profile", "p.json", "--substitute", LINE, "--samples", 2, "--budget", 4, "--budget", 8
    )
    assert f"trials of {LINE}" in shown
    after = read_profile("p.json")
    assert [(t.substitute, t.budgets, t.samples) for t in after.trials] == [(LINE, (4, 8), 5)]
    assert attrs.evolve(after, trials=()) == before
    command("plan", "p.json", "--target", "20dB", "--substitute", LINE)
    assert "give a number of samples >= 0" in command("trials", TARGET, "--profile", "p.json", "--samples", -1, code=2)


def test_a_calibration_of_one_sample_is_tried_on_others(command):
    command("calibrate", TARGET, "--samples", 1, "--out", "p.json")
    (trials,) = read_profile("p.json").trials
    assert trials.seeds == tuple(range(1001, 1009))
