"""``cachepolicies plan``."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cachepolicies.cli import app
from cachepolicies.planning import plan, read_plan
from cachepolicies.profiles import read_profile, save_profile
from made_profiles import outputs, profile_of


@pytest.fixture
def profile(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    return save_profile(profile_of(outputs(12)), tmp_path / "made-up.json")


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_plan_is_printed_written_and_drawn(profile, tmp_path):
    out, picture = tmp_path / "plans" / "plan.json", tmp_path / "plan.png"
    result = run(
        *(profile, "--budget", 5, "--objective", "lexicographic", "--substitute", "linear", "--max-reuse", 5),
        *("--always", 1, "--always", -1, "--weights", "bound", "--out", out, "--plot", picture),
    )
    assert result.exit_code == 0, result.output
    written = read_plan(out)
    expected = plan(
        read_profile(profile),
        5,
        objective="lexicographic",
        substitute="linear",
        max_reuse=5,
        always=(1, -1),
        weights="bound",
    )
    assert written == expected
    assert {0, 1, 11} <= set(written.refreshes)
    assert str(out) in result.output
    assert f"{written.predicted:.4g}" in result.output
    assert picture.stat().st_size > 5000


def test_every_budget_is_shown_on_request(profile):
    short, long = run(profile, "--budget", 5), run(profile, "--budget", 5, "--curve")
    assert short.exit_code == long.exit_code == 0
    assert len(long.output.splitlines()) == len(short.output.splitlines()) + 12 - 9


def test_a_target(profile, tmp_path):
    result = run(profile, "--target", 0.8, "--out", tmp_path / "plan.json")
    assert result.exit_code == 0, result.output
    assert read_plan(tmp_path / "plan.json").predicted <= 0.8


def test_other_steps(profile, tmp_path):
    arguments = (profile, "--budget", 6, "--num-steps", 18, "--errors", "predicted", "--out", tmp_path / "plan.json")
    assert run(*arguments).exit_code == 0
    assert read_plan(tmp_path / "plan.json").num_steps == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", 0), "budget is 0, expected from 1 to the number of steps, 12"),
        (("--budget", 3, "--max-reuse", 2), "budget 3 and max_reuse 2 on 12 steps clash: at least 4 refreshes"),
        (("--budget", 3, "--objective", "mean"), "unknown objective 'mean'"),
        (("--budget", 3, "--weights", "heavy"), "unknown weights 'heavy'"),
        (("--budget", 3, "--substitute", "nothing"), "unknown substitute 'nothing'"),
        (("--budget", 3, "--num-steps", 18), "use errors='predicted'"),
        (("--budget", 3, "--out", "plan.txt"), "a plan is a .json file; save it as 'plan.txt.json'"),
        ((), "give either budget or target"),
    ],
)
def test_errors_are_one_message(profile, arguments, message):
    result = run(profile, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
