"""Plans as records, as files, as tables and as pictures."""

from __future__ import annotations

import json
import sys

import attrs
import pytest
from rich.console import Console

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.planning import PlanError, plan, plot_plan, read_plan, save_plan, summarise_plan
from cachepolicies.planning.summary import steps_text
from made_profiles import outputs, profile_of


@pytest.fixture(scope="module")
def made():
    return plan(profile_of(outputs(20)), 8, always=(-1,), max_reuse=6)


@pytest.fixture(scope="module")
def without_tolerance():
    profile = profile_of(outputs())
    return plan(attrs.evolve(profile, tables={"change": profile.tables["change"]}), target=0.5, substitute="linear")


def test_a_plan_equals_its_own_file(made, without_tolerance, tmp_path):
    for number, one in enumerate((made, without_tolerance, attrs.evolve(made, method="milp"))):
        path = save_plan(one, tmp_path / "new" / f"{number}.json")
        assert read_plan(path) == one
        assert read_plan(str(path)).created == one.created
        assert json.loads(path.read_text())["format"] == "cachepolicies-plan"
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".json"] * 3


def test_only_json_files_are_written(made, tmp_path):
    with pytest.raises(PlanError, match=r"a plan is a \.json file; save it as 'plan\.yaml\.json'"):
        save_plan(made, tmp_path / "plan.yaml")


def change(*path_and_value):
    *path, last, value = path_and_value

    def apply(raw):
        for key in path:
            raw = raw[key]
        raw[last] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("format", "cachepolicies-profile"), "field 'format' is not 'cachepolicies-plan'"),
        (change("version", 3), "field 'version' is 3, this library reads 1 and 2"),
        (lambda raw: raw.pop("budget"), "field 'budget' is missing"),
        (change("surprise", 1), "unknown key 'surprise'"),
        (change("source", "surprise", 1), "unknown key 'surprise'"),
        (change("budget", "8"), "'8' is a str, expected int"),
        (change("budget", 8.0), "8.0 is a float, expected int"),
        (change("budget", True), "True is a bool, expected int"),
        (change("refreshes", "0123"), "expected a list"),
        (change("budget", 21), "field 'budget' is 21"),
        (change("budget", 2), "more than the budget 2"),
        (change("refreshes", [1, 2]), "field 'refreshes' is .1, 2."),
        (change("refreshes", [0, 3, 3, 19]), "increasing steps below 20"),
        (change("refreshes", [0, 5, 10, 15]), "lacks step 19"),
        (change("refreshes", [0, 10, 19]), "9 reuses in a row, more than 'max_reuse' 6"),
        (change("always", [19, 0]), "field 'always'"),
        (change("max_reuse", -1), "field 'max_reuse' is -1"),
        (change("weights", 2, -1.0), r"field 'weights\[2\]' is -1.0"),
        (change("weights", [1.0]), "field 'weights' has 1 entries for 20 steps"),
        (change("step_errors", 0, 0.5), r"step_errors\[0\]' is 0.5, expected 0"),
        (change("timesteps", 1, 2000.0), "must be strictly decreasing"),
        (change("predicted", 123.0), "differs from 'refreshes' and 'predicted'"),
        (change("curve", []), "expected a point for the budget 8"),
        (change("curve", 0, "predicted", -1.0), r"curve\[0\].predicted"),
        (change("curve", -1, "predicted", 1e9), "predicts 1000000000.0 with 20 refreshes, more than"),
        (change("curve", 0, "refreshes", [0]), r"curve\[0\].refreshes"),
        (change("objective", ""), "field 'objective' is ''"),
        (change("errors", "guessed"), "field 'errors' is 'guessed', expected one of measured, predicted"),
        (change("no_tolerance", "both"), "exactly one of the fields 'tolerance' and 'no_tolerance'"),
        (change("tolerance", "epsilon", 0, -1.0), "tolerance"),
        (change("target", -2.0), "field 'target' is -2.0"),
        (change("target_unit", "ssim"), "field 'target_unit' is 'ssim', expected one of objective, dB, rms"),
        (change("version", 1), "field 'target_unit' is not part of version 1"),
    ],
)
def test_damaged_files_are_refused(made, tmp_path, damage, message):
    path = save_plan(made, tmp_path / "plan.json")
    raw = json.loads(path.read_text())
    assert raw["tolerance"] is not None
    damage(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_unreadable_files_are_refused(made, tmp_path):
    with pytest.raises(PlanError, match="no such file"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path)
    path = save_plan(made, tmp_path / "plan.json")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PlanError, match=r"not valid JSON at line .* truncated or damaged"):
        read_plan(path)
    path.write_text("[1]")
    with pytest.raises(PlanError, match="holds a list, not an object"):
        read_plan(path)
    path.write_text(json.dumps({"format": "cachepolicies-plan", "version": 1}))
    with pytest.raises(PlanError, match="is missing"):
        read_plan(path)


def test_budgets_are_looked_up(made):
    assert made.at_budget(20).predicted == 0
    with pytest.raises(PlanError, match="the plan has no budget 21; it has "):
        made.at_budget(21)


def test_steps_as_text():
    assert steps_text((0, 1, 2, 5, 6, 9)) == "0-2 5 6 9"
    assert steps_text((4,)) == "4"
    assert steps_text(()) == ""


def printed(renderable):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_table_has_budget_error_and_steps(made, without_tolerance):
    text = printed(made)
    assert "predicted error" in text
    assert steps_text(made.refreshes) in text
    assert f"{made.predicted:.4g}" in text
    everything = printed(summarise_plan(made, curve=True))
    for point in made.curve:
        assert any(
            str(point.budget) in line and f"{point.predicted:.4g}" in line and steps_text(point.refreshes) in line
            for line in everything.splitlines()
        )
    assert "none: " in printed(without_tolerance)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures(made, without_tolerance, tmp_path, suffix):
    everything = attrs.evolve(made, **_all_refreshed(made))
    for number, one in enumerate((made, without_tolerance, everything)):
        path = plot_plan(one, tmp_path / "new" / f"{number}{suffix}")
        assert path.stat().st_size > 5000
    if suffix == ".svg":
        assert "<svg" in path.read_text()[:2000]


def _all_refreshed(made):
    point = made.at_budget(20)
    return {"budget": 20, "refreshes": point.refreshes, "predicted": 0.0, "step_errors": (0.0,) * 20}


def test_pictures_need_matplotlib_and_a_known_format(made, tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"use the suffix \.png, \.svg or \.pdf"):
        plot_plan(made, tmp_path / "plan.docx")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NeedsError, match="install the extra `plots`"):
        plot_plan(made, tmp_path / "plan.png")
