"""``cachepolicies adapters``, ``policies``, ``schedules`` and so on, and how errors leave the command line."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import typer
from attrs import evolve
from typer.testing import CliRunner

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli import app
from cachepolicies.cli.application import CleanErrors
from cachepolicies.registry.load import PluginFailure, Plugins, adapters
from cachepolicies.registry.registry import Entry, Registry, Source

OURS = Source("cachepolicies", "0.1")
THEIRS = Source("acme-policies", "2.0", "acme = acme.plugin")


def registry(kind: str, *entries: Entry[Any]) -> Registry[Any]:
    empty: Registry[Any] = Registry(kind)
    return empty.extended(entries)


@pytest.fixture
def loaded(monkeypatch):
    """Put known registries in place of the loaded ones, with a failure and words that look like markup."""
    made = Plugins(
        adapters=registry(
            "adapter", Entry("NovaModel", dict, OURS, "Nova."), Entry("AcmeModel", dict, THEIRS, "Acme's.")
        ),
        policies=registry(
            "policy", Entry("never", dict, OURS, "Evaluates."), Entry("acme", dict, THEIRS, "Odd [bold]words[/x].")
        ),
        schedulers=registry("scheduler", Entry("flow-euler", dict, OURS, "Euler.")),
        scores=registry("score", Entry("bound", dict, OURS, "A bound.")),
        signals=registry("signal", Entry("size", dict, THEIRS, "The latent's size.")),
        sites=registry("site", Entry("output", dict, OURS, "The output.")),
        substitutes=registry("substitute", Entry("hold", dict, OURS, "Holds.")),
        tolerances=registry("tolerance schedule", Entry("constant", dict, OURS, "One for all.")),
        failures=(PluginFailure(Source("broken-dist", "3.1", "brk = brk"), ImportError("no [red]moon")),),
    )
    monkeypatch.setattr("cachepolicies.registry.load._loaded", made)
    monkeypatch.setenv("COLUMNS", "120")
    return made


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("adapters", ("NovaModel", "cachepolicies", "0.1", "Nova.")),
        ("adapters", ("AcmeModel", "acme-policies", "2.0", "Acme's.")),
        ("policies", ("acme", "acme-policies", "2.0", "Odd [bold]words[/x].")),
        ("policies", ("never", "cachepolicies", "0.1", "Evaluates.")),
        ("schedulers", ("flow-euler", "cachepolicies", "0.1", "Euler.")),
        ("schedules", ("constant", "cachepolicies", "0.1", "One for all.")),
        ("substitutes", ("hold", "cachepolicies", "0.1", "Holds.")),
    ],
)
def test_tables(loaded, command, row):
    result = run(command)
    assert result.exit_code == 0
    [line] = [line for line in result.stdout.splitlines() if f" {row[0]} " in line]
    assert re.split(r"\s{2,}", line.strip()) == list(row)


def test_failures_are_listed_below_the_table(loaded):
    result = run("policies")
    assert result.exit_code == 0
    last = result.stdout.strip().splitlines()[-1]
    assert "'broken-dist' 3.1 (entry point 'brk = brk')" in last
    assert "ImportError: no [red]moon" in last


def test_a_narrow_terminal_cuts_no_name(loaded, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert "acme-policies" in run("policies").stdout


def test_a_pipe_gets_one_line_for_each_name(loaded, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    long = evolve(loaded, policies=registry("policy", Entry("long", dict, OURS, "word " * 25 + "end")))
    monkeypatch.setattr("cachepolicies.registry.load._loaded", long)
    assert run("policies").stdout.count("word " * 25 + "end") == 1


REGISTRY_OF = {
    "adapters": "adapters",
    "policies": "policies",
    "schedulers": "schedulers",
    "schedules": "tolerances",
    "scores": "scores",
    "signals": "signals",
    "sites": "sites",
    "substitutes": "substitutes",
}


@pytest.mark.parametrize("command", REGISTRY_OF)
def test_json(loaded, command):
    result = run(command, "--json")
    assert result.exit_code == 0
    read = json.loads(result.stdout)
    assert [entry["name"] for entry in read[command]] == list(getattr(loaded, REGISTRY_OF[command]).names())
    assert set(read[command][0]) == {"name", "distribution", "version", "summary"}
    assert read["failures"] == [
        {
            "distribution": "broken-dist",
            "version": "3.1",
            "entry_point": "brk = brk",
            "cause": "ImportError: no [red]moon",
        }
    ]


def test_the_installed_adapters_are_listed():
    """The command and the registry agree; no name is made up here."""
    result = run("adapters", "--json")
    assert result.exit_code == 0
    read = json.loads(result.stdout)["adapters"]
    assert [entry["name"] for entry in read] == list(adapters().names())
    ours = [entry for entry in read if entry["distribution"] == "cachepolicies"]
    assert "WanTransformer3DModel" in [entry["name"] for entry in ours]
    assert all(entry["summary"].endswith(".") for entry in ours)


def test_the_installed_tolerance_schedules_are_listed():
    result = run("schedules", "--json")
    assert result.exit_code == 0
    read = json.loads(result.stdout)["schedules"]
    ours = {entry["name"]: entry["summary"] for entry in read if entry["distribution"] == "cachepolicies"}
    assert ours.keys() == {"constant", "two-phase", "optimal", "plan"}
    assert all(summary.endswith(".") for summary in ours.values())


def test_help_names_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    for command in REGISTRY_OF:
        assert command in result.stdout
    assert run("no-such-command").exit_code == 2


@pytest.fixture
def failing():
    application = typer.Typer(cls=CleanErrors)

    @application.command()
    def settings():
        raise SettingsError("epsilon must be [0, 1], got " + "9" * 100)

    @application.command()
    def defect():
        raise ZeroDivisionError("a defect")

    return application


def test_an_error_of_the_library_is_one_message_and_exit_code_2(failing):
    result = CliRunner().invoke(failing, ["settings"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: epsilon must be [0, 1], got " + "9" * 100 + "\n"


def test_a_defect_is_not_dressed_up(failing):
    result = CliRunner().invoke(failing, ["defect"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1
