"""Files, names and texts of strangers: an error of this library, short, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import cachepolicies
from cachepolicies import CachedDenoiser, CacheWarning, load_profile
from cachepolicies.base.console import PlainTable
from cachepolicies.base.errors import MOST_CHARACTERS, CachePoliciesError, InputError, ProfileError, SettingsError
from cachepolicies.cli import app
from cachepolicies.planning import PlanError, read_plan
from cachepolicies.profiles.load import shipped_profiles
from cachepolicies.profiles.schema import Curve, Recommendation
from cachepolicies.schedulers.ddim import DDIM
from cachepolicies.schedulers.from_diffusers import from_class_name
from mutated_documents import damaged

NO_FILES = ("a\0b", "~nobody/x.json", "~nobody", "a\ud800", "a" * 5000, "x/" * 3000, "[/red]", "\x1b[31m", "/dev/null")


def test_a_damaged_document_is_read_or_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcomes = {}
        for seed in range(300):
            folder = tmp_path / str(seed)
            folder.mkdir()
            outcomes[seed] = damaged(seed, folder).tried()
    assert {seed: problem for seed, (_, problem) in outcomes.items() if problem is not None} == {}
    assert 10 < sum(valid for valid, _ in outcomes.values()) < 150


@pytest.mark.parametrize("source", NO_FILES)
def test_names_that_are_no_files(source):
    with pytest.raises((ProfileError, cachepolicies.UnknownNameError)) as refused:
        load_profile(source)
    assert str(refused.value).isprintable()
    for path in (source, Path(source)):
        with pytest.raises(PlanError):
            read_plan(path)
    with pytest.raises(ProfileError):
        load_profile(Path(source))


@pytest.mark.parametrize("read", [load_profile, read_plan])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (str(tmp_path / "pipe.json"), "/dev/zero", str(tmp_path)):
        with pytest.raises((ProfileError, PlanError)):
            read(path)


def test_tables_that_are_no_regular_file(tmp_path):
    document = json.loads(shipped_profiles()["video-dit"].read_text())
    (tmp_path / "p.json").write_text(json.dumps(document))
    os.mkfifo(tmp_path / document["tables"]["file"])
    with pytest.raises(ProfileError, match="no regular file"):
        load_profile(tmp_path / "p.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "p.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ProfileError, match="8589934592 bytes"):
        load_profile(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ('{"a": ' + "9" * 4301 + "}", "an integer of 4301 digits"),
        ('{"a": ' + "9" * 4300 + "}", "an integer of 4300 digits"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"b": {"a": 1, "c": 2, "a": 2}}', "the key 'a' stands twice"),
    ],
)
def test_json_that_nobody_wrote(tmp_path, text, why):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ProfileError, match=why):
        load_profile(tmp_path / "p.json")
    with pytest.raises(PlanError, match=why):
        read_plan(tmp_path / "p.json")


@pytest.mark.parametrize(
    "dtype", ["S1000000000", "U500000000", "V9", "O", "M8[ns]", ">f8", "float128", 3, None, ["f8"]]
)
def test_kinds_of_numbers_that_a_table_cannot_have(tmp_path, dtype):
    document = json.loads(shipped_profiles()["flux.1-dev"].read_text())
    document["tables"] = {"inline": {"magnitude_ratio": {"shape": [1], "dtype": dtype, "values": [1.0]}}}
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(ProfileError, match="has dtype"):
        load_profile(tmp_path / "p.json")


@pytest.mark.parametrize("values", [[[1e308], [1e308]], [[1e101], [1.0]], [[-1e200], [1.0]]])
def test_measured_values_with_which_nothing_can_be_computed(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ProfileError, match="nothing can be computed"):
            Curve((2.0, 1.0), np.array(values))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0, -2.0])
def test_recommendations_are_finite(factor):
    with pytest.raises(ProfileError, match="expected a finite number above 0"):
        Recommendation("teacache", {}, speedup_stated=factor)


@pytest.mark.parametrize("trained", [10**8 * 3, 10**12])
def test_schedulers_with_more_levels_than_anybody_trained(trained):
    from_class_name("DDIMScheduler")  # imports diffusers
    with pytest.raises(SettingsError, match="num_train_timesteps"):
        DDIM(num_train_timesteps=trained)
    for name in ("DDIMScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        with pytest.raises(SettingsError, match="num_train_timesteps"):
            from_class_name(name, num_train_timesteps=trained)


@pytest.mark.parametrize(
    "spec",
    [
        "uniform:every=2" * 1000,
        "uniform:every=" + "9" * 5000,
        "\x1b[31m",
        "uniform:every=1e400",
        "a\0",
        "(" * 10_000,
        "uniform:every=" + "(" * 5000,
        "x" * 100_000,
        "\u202euniform",
    ],
)
def test_specs_that_nobody_wrote(spec):
    with pytest.raises(CachePoliciesError) as refused:
        CachedDenoiser(lambda x, t: x, policy=spec)
    assert len(str(refused.value)) <= MOST_CHARACTERS
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", [InputError, ProfileError, CacheWarning])
def test_messages_are_short_and_plain(kind):
    made = kind("before " + "\x1b[31m\x07\u202e\ud800" + "a" * 100_000 + " after")
    assert len(str(made)) < MOST_CHARACTERS + 100
    assert str(made).startswith("before \\x1b[31m\\x07\\u202e\\ud800aaa")
    assert str(made).endswith("a after")
    assert str(kind("one\ntwo\t[/red]")) == "one\ntwo\t[/red]"
    assert str(pickle.loads(pickle.dumps(made))) == str(made)


def test_tables_show_texts_as_they_are(tmp_path):
    table = PlainTable("[/head]", title="[/title] \x1b[2J")
    table.add_column("\x1b[31m")
    table.add_row("[/red]", "[bold]\x1b[31m")
    with (tmp_path / "out").open("w") as file:
        Console(file=file, width=100).print(table)
    shown = (tmp_path / "out").read_text()
    assert "\x1b" not in shown
    for text in ("[/head]", "[/title] \\x1b[2J", "[/red]", "[bold]\\x1b[31m"):
        assert text in shown


@pytest.mark.parametrize("place", ["/dev/null/x.json", "file/x.json", "a" * 300 + ".json", "folder.json", "x.txt"])
def test_a_place_where_no_file_can_be_is_refused_before_anything_is_computed(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder.json").mkdir()
    commands: tuple[Any, ...] = (
        ("plan", "video-dit", "--budget", "10"),
        ("calibrate", "cachepolicies.reference.workloads:video_dit", "--samples", "1"),
    )
    for command in commands:
        done = CliRunner().invoke(app, [*command, "--out", place])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("error: --out ")
        assert len(done.stderr) < MOST_CHARACTERS
