"""`cachepolicies calibrate --pipeline`, on a pipeline that was saved to a folder; profiles by the model's own id."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import cachepolicies
from cachepolicies import load_profile
from cachepolicies.cli import app
from tiny_pipelines import PIPELINES

RUNNER = CliRunner()


def test_a_pipeline_from_a_folder_is_calibrated(tmp_path):
    tiny = PIPELINES["dit"]
    tiny.build().save_pretrained(tmp_path / "pipe")
    (tmp_path / "prompts.txt").write_text('{"class_labels": [1]}\n\n{"class_labels": [2]}\n')
    out = tmp_path / "dit.json"
    arguments = ["--pipeline", tmp_path / "pipe", "--prompts", tmp_path / "prompts.txt", "--steps", 8, "--out", out]
    found = RUNNER.invoke(app, ["calibrate", *map(str, arguments), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["name"] == "dit"
    profile = load_profile(out)
    assert profile.samples == 2
    assert profile.num_steps == 8
    assert not out.with_name("dit.json.partial").exists()
    pipe = tiny.build()
    with cachepolicies.enable(pipe, budget=0.5, profile=out, learn=False) as enabled:
        tiny.call(pipe, steps=8)
        assert enabled.trace.cache_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.json"], "give a workload"),
        (["--out", "x.json", "--pipeline", "nowhere"], "--pipeline goes with --prompts and --steps"),
        (["--out", "x.json", "--pipeline", "p", "--prompts", "no.txt", "--steps", "5"], "cannot be read"),
    ],
)
def test_what_is_missing_is_said(arguments, message):
    found = RUNNER.invoke(app, ["calibrate", *arguments])
    assert found.exit_code == 2
    assert message in found.stderr


def test_prompts_that_are_none_are_said(tmp_path):
    empty, broken = tmp_path / "empty.txt", tmp_path / "broken.txt"
    empty.write_text("\n\n")
    broken.write_text("a cat\n{not json\n")
    for path, message in ((empty, "holds no prompt"), (broken, "line 2 is no JSON object")):
        arguments = ["--out", "x.json", "--pipeline", "p", "--prompts", str(path), "--steps", "5"]
        found = RUNNER.invoke(app, ["calibrate", *arguments])
        assert found.exit_code == 2
        assert message in found.stderr


def test_profiles_are_found_by_the_models_own_id():
    assert load_profile("black-forest-labs/FLUX.1-dev").name == load_profile("flux.1-dev").name
    assert load_profile("Wan-AI/Wan2.1-T2V-1.3B").model.class_name == "WanTransformer3DModel"


def test_the_version_is_printed():
    found = RUNNER.invoke(app, ["--version"])
    assert found.exit_code == 0
    assert found.stdout.strip() == f"cachepolicies {cachepolicies.__version__}"


@pytest.mark.parametrize(
    "command", [["profiles"], ["profiles", "show", "video-dit"], ["plan", "video-dit", "--budget", "0.4"]]
)
def test_json_is_all_there_is_on_stdout(command):
    found = RUNNER.invoke(app, [*command, "--json"])
    assert found.exit_code == 0
    json.loads(found.stdout)


def test_profiles_fit_eighty_columns():
    found = RUNNER.invoke(app, ["profiles"], env={"COLUMNS": "80"})
    assert max(len(line) for line in found.stdout.splitlines() if "/" not in line) <= 80
