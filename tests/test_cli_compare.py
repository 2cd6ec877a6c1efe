"""``cachepolicies compare``, ``calibrate`` and ``profiles`` from end to end on a small workload."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from cachepolicies.cli import app
from cachepolicies.profiles.io import read_profile

MODULE = """
import torch
from cachepolicies.comparison import Inputs, Workload


def velocity(x, t):
    return x * (0.5 + t[:, None, None] / 2000)


def inputs(seeds):
    rows = [torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Inputs(noise=torch.stack(rows))


def build(gain=1.0, name="from-a-file"):
    return Workload(name, velocity, "flow-euler", 8, (12, 12), inputs, lambda x: (gain * x).clamp(0, 1))


def broken():
    import no_such_dependency
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "tiny_workload_for_cli.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


BUILD = "tiny_workload_for_cli:build"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_calibrate_show_and_compare(folder):
    made = run("calibrate", BUILD, "--samples", 2, "--out", "made/tiny.json", "--checkpoint", "parts")
    assert made.exit_code == 0, made.output
    profile = read_profile(folder / "made" / "tiny.json")
    assert (profile.name, profile.samples, profile.num_steps) == ("tiny", 2, 8)
    assert profile.seeds == (1000, 1001)
    assert not (folder / "parts").exists()

    shown = run("profiles", "show", "made/tiny.json", "--plot", "plots/tiny.png")
    assert shown.exit_code == 0, shown.output
    assert "flow-euler" in shown.stdout
    assert (folder / "plots" / "tiny.png").read_bytes().startswith(b"\x89PNG")

    spec = "sencache:epsilon=0.3,start_fraction=0.0"
    compared = run("compare", BUILD, "--policy", spec, "--policy", "uniform:every=4", "--profile", "made/tiny.json",
                   "--seeds", 3, "--first-seed", 7, "--out", "out", "--repeats", 2, "--option", "gain=0.5")  # fmt: skip
    assert compared.exit_code == 0, compared.output
    read = json.loads((folder / "out" / "table.json").read_text())
    labels = [row["label"] for row in read["rows"]]
    assert read["seeds"] == [7, 8, 9]
    assert labels[0] == "uncached"
    assert {spec, "uniform:every=4", "fewer steps (2)"} <= set(labels)
    for label in labels:
        assert label in compared.stdout
    assert (folder / "out" / "table.csv").read_text().count("\n") == len(labels) + 1
    assert re.search(r"out.report\.html", compared.stdout)
    assert "from-a-file" in (folder / "out" / "report.html").read_text()


def test_without_baselines_and_with_other_steps(folder):
    found = run("compare", BUILD, "--policy", "uniform:every=2", "--no-baselines", "--steps", 6, "--seeds", 1)
    assert found.exit_code == 0, found.output
    assert "fewer steps" not in found.stdout
    assert re.search(r"uniform:every=2\s+3\.0\s+50%", found.stdout)
    assert list(folder.glob("*.html")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_such_module_at_all:build", "--policy", "never"), "there is no module 'no_such_module_at_all'"),
        (("tiny_workload_for_cli:nothing", "--policy", "never"), "has no 'nothing'"),
        (("tiny_workload_for_cli:inputs", "--policy", "never"), "missing setting seeds"),
        ((BUILD,), "give at least one policy"),
        ((BUILD, "--policy", "sencach"), "did you mean 'sencache'"),
        ((BUILD, "--policy", "uniform:every"), "malformed spec"),
        ((BUILD, "--policy", "uniform:evry=2"), "unknown setting 'evry'"),
        ((BUILD, "--policy", "sencache:epsilon=-1"), "epsilon must be a finite number >= 0"),
        ((BUILD, "--policy", "sencache"), "needs"),
        ((BUILD, "--policy", "never", "--profile", "nowhere.json"), "no such file"),
        ((BUILD, "--policy", "never", "--seeds", "0"), "--seeds must be at least 1, got 0"),
        ((BUILD, "--policy", "never", "--first-seed", "-1"), "first seed must be at least 0"),
        ((BUILD, "--policy", "never", "--steps", "0"), "num_steps must be an integer >= 1"),
        ((BUILD, "--policy", "never", "--option", "gain"), "expected name=value"),
        ((BUILD, "--policy", "never", "--option", "gian=2"), "did you mean 'gain'"),
        ((BUILD, "--policy", "never", "--option", "gain=2", "--option", "gain=3"), "given twice"),
        ((BUILD, "--policy", "never", "--policy", "never"), "label 'never' is used twice"),
    ],
)
def test_compare_explains_what_is_wrong(folder, arguments, message):
    found = run("compare", *arguments, "--out", "out")
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.startswith("error: ")
    assert not (folder / "out").exists()


def test_calibrate_explains_what_is_wrong(folder):
    for arguments, message in (
        (("--out", "x.txt"), "a profile is a .json file; save it as 'x.txt.json'"),
        (("--out", "x.json", "--samples", 0), "--samples must be at least 1"),
        (("--out", "x.json", "--trajectory", "other"), "--trajectory 'other' is unknown; choose model or noised"),
        (("--out", "x.json", "--trajectory", "noised"), "needs clean latents"),
    ):
        found = run("calibrate", BUILD, *arguments)
        assert found.exit_code == 2
        assert message in found.stderr
    assert list(folder.glob("x*")) == []


def test_profiles_lists_the_shipped_ones_and_reports_the_unreadable(monkeypatch, folder):
    from cachepolicies.profiles import load

    assert run("calibrate", BUILD, "--samples", 1, "--out", "good.json").exit_code == 0
    (folder / "bad.json").write_text("{")
    monkeypatch.setenv("CACHEPOLICIES_HOME", str(folder / "home"))
    monkeypatch.setattr(load, "shipped_profiles", lambda: {n: folder / f"{n}.json" for n in ("bad", "good")})
    found = run("profiles")
    assert found.exit_code == 0
    assert re.search(
        r"  good\n    best, sencache, easycache, seacache\n    measured, flow-euler, 8 steps", found.stdout
    )
    assert re.search(r"^bad: ", found.stdout, re.MULTILINE)
    monkeypatch.setattr(load, "shipped_profiles", dict)
    assert "no profiles are shipped" in run("profiles").stdout


def test_an_unknown_profile_lists_the_known_ones():
    found = run("profiles", "show", "no-such-profile")
    assert found.exit_code == 2
    assert "unknown profile 'no-such-profile'" in found.stderr
