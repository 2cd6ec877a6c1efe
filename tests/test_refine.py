"""Moving the refreshes of a plan by the true error of sampled runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cachepolicies import CachedDenoiser, sample
from cachepolicies.base.errors import SettingsError
from cachepolicies.calibration import CalibrationSamples, calibrate, refine
from cachepolicies.calibration.refine import _moves
from cachepolicies.cli import app
from cachepolicies.planning import plan, read_plan
from cachepolicies.policies import Schedule
from cachepolicies.schedulers.flow_euler import FlowEuler
from denoisers import SHAPE, Counted, mixture

STEPS, ROWS = 16, 3
LINE = "linear:correct=0.8"


def samples_of(seeds):
    return CalibrationSamples.from_seeds(tuple(seeds), SHAPE)


@pytest.fixture(scope="module")
def profile():
    return calibrate(Counted(mixture()), FlowEuler(), samples_of(range(4)), num_steps=STEPS, weights=1, progress=False)


def error(denoiser, refreshes, samples):
    cached = CachedDenoiser(
        denoiser, Schedule(refreshes=refreshes, num_steps=STEPS), substitute=LINE, scheduler=FlowEuler()
    )
    bare = sample(denoiser, FlowEuler(), samples.noise, num_steps=STEPS)
    off = sample(cached, FlowEuler(), samples.noise, num_steps=STEPS) - bare
    rms = off.double().flatten(1).square().mean(dim=1).sqrt()
    return float((-20 * rms.log10()).mean())


def test_the_samples_come_nearer_and_every_evaluation_is_counted(profile):
    made = plan(profile, 5, substitute=LINE, objective="sum", weights="uniform")
    counting = Counted(mixture())
    seen = samples_of(range(ROWS))
    found = refine(made, profile, counting, FlowEuler(), seen, 1200, progress=False)
    assert found.evaluations == sum(counting.rows) <= 1200
    assert found.evaluations == ROWS * (STEPS + 5 * (1 + found.tried))
    assert found.after > found.before
    assert len(found.refreshes) == 5
    assert found.refreshes[0] == 0
    assert found.before == pytest.approx(error(mixture(), made.refreshes, seen), abs=1e-3)
    assert found.after == pytest.approx(error(mixture(), found.refreshes, seen), abs=1e-3)


def test_with_evaluations_to_spare_no_single_move_is_better(profile):
    made = plan(profile, 4, substitute=LINE)
    seen = samples_of(range(ROWS))
    found = refine(made, profile, Counted(mixture()), FlowEuler(), seen, 100_000, progress=False)
    assert found.evaluations < 100_000
    moves = list(_moves(STEPS, found.refreshes, np.random.default_rng(1)))
    assert max(error(mixture(), move, seen) for move in moves) <= found.after + 1e-6


def test_the_same_seed_gives_the_same_steps(profile):
    made = plan(profile, 5, substitute=LINE)
    one, other = (
        refine(made, profile, Counted(mixture()), FlowEuler(), samples_of(range(2)), 400, seed=3, progress=False)
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("evaluations", [0, 77, True, 1e3])
def test_too_few_evaluations(profile, evaluations):
    made = plan(profile, 5, substitute=LINE)
    with pytest.raises(SettingsError, match="give at least 78, or fewer samples"):
        refine(made, profile, Counted(mixture()), FlowEuler(), samples_of(range(ROWS)), evaluations, progress=False)


@given(st.data())
def test_a_move_changes_one_step_by_one(data):
    steps = data.draw(st.integers(2, 20))
    inner = data.draw(st.sets(st.integers(1, steps - 1)))
    refreshes = (0, *sorted(inner))
    found = list(_moves(steps, refreshes, np.random.default_rng(0)))
    assert len({*found}) == len(found)
    for move in found:
        assert move[0] == 0
        assert len(move) == len(refreshes)
        (old,), (new,) = {*refreshes} - {*move}, {*move} - {*refreshes}
        assert abs(old - new) == 1


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


def test_the_command_writes_a_plan_of_the_moved_steps(tmp_path, monkeypatch):
    (tmp_path / "workload_to_refine.py").write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "workload_to_refine:build"
    run = CliRunner().invoke
    made = run(
        app, ["calibrate", target, "--samples", "3", "--weights", "every", "--trials", "none", "--out", "p.json"]
    )
    assert made.exit_code == 0, made.output
    common = ["plan", "p.json", "--budget", "4", "--substitute", LINE, "--out", "plan.json"]
    found = run(app, [*common, "--refine", "600", "--workload", target, "--samples", "2"])
    assert found.exit_code == 0, found.output
    again = read_plan("plan.json")
    assert len(again.refreshes) == 4
    assert "refined on 2 samples with" in again.notes
    refused = run(app, [*common, "--refine", "600"])
    assert refused.exit_code == 2
    assert "--refine and --workload belong together" in refused.stderr
