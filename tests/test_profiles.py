"""Profiles: their checks, their files, where they are found, and what they fit."""

from __future__ import annotations

import builtins
import functools
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from cachepolicies.base.errors import InputError, NeedsError, ProfileError, SettingsError, UnknownNameError
from cachepolicies.profiles import (
    Curve,
    ModelInfo,
    Polynomial,
    Profile,
    PublishedProfile,
    Recommendation,
    SchedulerInfo,
    Trials,
    check_profile,
    config_hash,
    load_profile,
    model_class_name,
    plot_magnitude_ratios,
    plot_polynomial,
    plot_sensitivities,
    read_profile,
    save_profile,
    shipped_profiles,
    summarise,
    weights_hash,
)
from cachepolicies.profiles import load as load_module
from made_profiles import as_published


def make_profile(steps: int = 4, samples: int = 3, **changes: Any) -> Profile:
    rng = np.random.default_rng(0)
    ts = tuple(1000.0 * (1 - k / steps) for k in range(steps))
    fields: dict[str, Any] = {
        "name": "demo",
        "model": ModelInfo("Net", "c" * 64, "d" * 64),
        "prediction_type": "velocity",
        "latent_shape": (4, 8, 8),
        "scheduler": SchedulerInfo("flow-euler", "flow", {"shift": 3.0, "spans": (1, 2)}),
        "timesteps": ts,
        "final_t": 0.0,
        "guidance": 2.0,
        "samples": samples,
        "seeds": tuple(range(samples)),
        "evaluations": 3 * steps,
        "versions": {"torch": "2"},
        "created": "2026-01-01T00:00:00+00:00",
        "notes": "a note with [ 1,  2 ] and a \n line break",
        "curves": {
            "alpha_x": Curve(ts, rng.random((steps, samples))),
            "alpha_t": Curve(ts[:-1], rng.random((steps - 1, samples)) / 3),
            "weight": Curve(ts, rng.random((steps, 1))),
            "drift": Curve(ts, -rng.random((steps, 1))),
        },
        "tables": {
            "displacement": rng.random((steps, steps, samples), dtype=np.float32),
            "change": rng.random((steps, steps, samples), dtype=np.float32),
            "plan": np.arange(5),
        },
    }
    return Profile(**{**fields, **changes})


# ---------------------------------------------------------------------------------------------- curves


def test_nearest_and_linear_lookup() -> None:
    curve = Curve((8.0, 4.0, 2.0), [[1.0, 3.0], [10.0, 10.0], [0.0, 40.0]])
    assert curve.mean().tolist() == [2, 10, 20]
    assert curve.spread().tolist() == [1, 0, 20]
    assert curve.quantile(0.25).tolist() == [1.5, 10, 10]
    assert [curve.at(t) for t in (9, 8, 6.1, 6, 5.9, 4, 3, 2.9, 2, -1)] == [2, 2, 2, 2, 10, 10, 10, 20, 20, 20]
    assert [curve.at(t, "linear") for t in (9, 8, 7, 5, 4, 2.5, 2, 1)] == [2, 2, 4, 8, 10, 17.5, 20, 20]
    assert Curve((5.0,), [[7.0]]).at(123.0, "linear") == 7


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12, unique=True),
    st.floats(-2e3, 2e3),
    st.integers(0, 2**31),
)
def test_lookup_matches_numpy(ts: list[float], t: float, seed: int) -> None:
    ts = sorted(ts, reverse=True)
    curve = Curve(tuple(ts), np.random.default_rng(seed).random((len(ts), 2)))
    assert curve.at(t, "linear") == pytest.approx(np.interp(t, ts[::-1], curve.mean()[::-1]), rel=1e-6, abs=1e-9)
    distances = np.abs(np.array(ts) - t)
    assert curve.at(t) in curve.mean()[np.isclose(distances, distances.min())]


class Compared(float):
    """A number that counts how often it is compared by size."""

    count = 0

    def __lt__(self, other: float) -> bool:
        type(self).count += 1
        return float(self) < other

    def __gt__(self, other: float) -> bool:
        type(self).count += 1
        return float(self) > other


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_a_lookup_is_a_binary_search_that_reads_no_sample(interpolation: Any) -> None:
    curve = Curve(tuple(range(250, 0, -1)), np.random.default_rng(0).random((250, 8)))
    expected = curve.at(77.7, interpolation)
    object.__setattr__(curve, "values", None)  # the means were taken when the curve was made
    Compared.count = 0
    assert curve.at(Compared(77.7), interpolation) == expected
    assert 0 < Compared.count <= (250).bit_length()


def test_a_curve_cannot_be_changed_from_outside() -> None:
    values = np.ones((2, 1))
    curve = Curve((2.0, 1.0), values)
    values[0] = 5
    assert curve.values[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        curve.values[0] = 5
    assert curve == Curve((2.0, 1.0), [[1], [1]])
    assert curve != Curve((2.0, 1.0), [[1], [2]])
    assert hash(curve) == hash(Curve((2.0, 1.0), [[1], [1]]))


def test_bad_lookups() -> None:
    curve = Curve((2.0, 1.0), np.ones((2, 1)))
    with pytest.raises(InputError, match="t = nan"):
        curve.at(float("nan"))
    with pytest.raises(SettingsError, match="unknown interpolation 'cubic'; choose 'nearest' or 'linear'"):
        curve.at(1.0, "cubic")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"a quantile lies in \[0, 1\], got 5"):
        curve.quantile(5)


@pytest.mark.parametrize(
    ("t", "values", "said"),
    [
        ((), np.ones((0, 1)), "curve field 't' is empty"),
        ((1.0, 2.0), np.ones((2, 1)), "curve field 't'[1] = 2.0 follows 1.0"),
        ((1.0, 1.0), np.ones((2, 1)), "strictly decreasing"),
        ((float("inf"), 1.0), np.ones((2, 1)), "curve field 't'[0] is inf"),
        ((2.0, 1.0), np.ones((3, 1)), "has shape (3, 1), expected (2, samples)"),
        ((2.0, 1.0), np.ones(2), "has shape (2,)"),
        ((2.0, 1.0), np.ones((2, 0)), "has shape (2, 0)"),
        ((2.0, 1.0), [[1, 2], [float("nan"), 3]], "non-finite value nan at [1, 0]"),
        ((2.0, 1.0), [[1, 2], [3]], "not a rectangular array"),
    ],
)
def test_bad_curves(t: Any, values: Any, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        Curve(t, values)
    assert said in str(caught.value)


# ---------------------------------------------------------------------------------------------- the record


def test_named_access_and_equality() -> None:
    profile = make_profile()
    assert profile.alpha_x is profile.curves["alpha_x"]
    assert profile.alpha_t is profile.curves["alpha_t"]
    assert profile.displacement is profile.tables["displacement"]
    assert profile.change is profile.tables["change"]
    assert profile.num_steps == 4
    bare = make_profile(curves={}, tables={})
    assert (bare.alpha_x, bare.alpha_t, bare.displacement, bare.change) == (None, None, None, None)
    assert profile == make_profile()
    assert hash(profile) == hash(make_profile())
    assert profile != bare
    assert profile != attrs.evolve(profile, tables={**profile.tables, "plan": np.arange(5) + 1})
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        profile.name = "other"  # type: ignore[misc]


def test_require_says_what_is_missing_and_how_to_get_it() -> None:
    profile = make_profile(curves={"alpha_x": Curve((1.0,), [[1.0]])}, tables={})
    profile.require("sencache", ["alpha_x"])
    with pytest.raises(NeedsError) as caught:
        profile.require("sencache", ["alpha_x", "alpha_t", "plan"])
    assert "policy 'sencache' needs 'alpha_t', 'plan', which profile 'demo' does not have (it has: alpha_x)" in str(
        caught.value
    )
    assert "cachepolicies calibrate" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 4}, "field 'version' is 4, this library reads 3"),
        ({"name": ""}, "field 'name' is empty"),
        ({"model": ModelInfo("")}, "field 'model.class_name' is empty"),
        ({"prediction_type": "epsilon"}, "field 'prediction_type' is 'epsilon', expected one of velocity, noise"),
        ({"trajectory": "backwards"}, "field 'trajectory' is 'backwards'"),
        ({"timesteps": (1.0, 2.0, 0.5, 0.1)}, "'timesteps'[1] = 2.0 follows 1.0"),
        ({"timesteps": ()}, "field 'timesteps' is empty"),
        ({"final_t": float("nan")}, "field 'final_t' is nan"),
        ({"final_t": 999.0}, "at most the last timestep 250.0"),
        ({"guidance": float("inf")}, "field 'guidance' is inf"),
        ({"latent_shape": (4, 0)}, "field 'latent_shape' is (4, 0)"),
        ({"latent_shape": ()}, "field 'latent_shape' is ()"),
        ({"samples": 0, "seeds": (), "curves": {}}, "field 'samples' is 0"),
        ({"seeds": (1,)}, "field 'seeds' has 1 entries for 3 samples"),
        ({"curves": {"a": Curve((1.0,), [[1.0, 2.0]])}}, "curve 'a' has 2 columns for 3 samples"),
        ({"curves": {"alpha_x": Curve((1.0,), [[-1.0]])}}, "curve 'alpha_x' has the negative value -1.0"),
        ({"curves": {"weight": Curve((1.0,), [[-2.0]])}}, "curve 'weight' has the negative value -2.0"),
        ({"curves": {"rho": Curve((1.0,), [[-1.5]])}}, "curve 'rho' has the value -1.5, but it is a correlation"),
        ({"tables": {"change": np.ones((4, 4))}}, "table 'change' has shape (4, 4), expected (steps, steps, samples)"),
        ({"tables": {"plan": np.array([1, np.inf])}}, "table 'plan' has the non-finite value inf at [1]"),
        ({"tables": {"plan": np.array(["a"])}}, "table 'plan' has dtype <U1, not numbers"),
    ],
)
def test_bad_records(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        attrs.evolve(make_profile(), **change)
    assert said in str(caught.value)


def test_a_config_must_be_json() -> None:
    with pytest.raises(ProfileError, match=r"field 'config' holds something JSON cannot.*give numbers"):
        SchedulerInfo("a", "flow", {"x": object()})
    with pytest.raises(ProfileError, match="field 'config'"):
        SchedulerInfo("a", "flow", {"x": float("nan")})


# ---------------------------------------------------------------------------------------------- files


def test_round_trip_is_exact(tmp_path: Path) -> None:
    profile = make_profile()
    path = save_profile(profile, tmp_path / "new" / "demo-1.5.json")
    assert sorted(p.name for p in path.parent.iterdir()) == ["demo-1.5.json", "demo-1.5.safetensors"]
    again = read_profile(str(path))
    assert again == profile
    assert again.created == profile.created
    assert again.notes == profile.notes
    assert again.tables["change"].dtype == np.float32
    assert again.scheduler is not None
    assert again.scheduler.config == {"shift": 3.0, "spans": [1, 2]}
    assert path.stat().st_mode & 0o444 == 0o444


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 6), samples=st.integers(1, 4), tables=st.booleans(), notes=st.text(max_size=20))
def test_any_profile_survives_the_disk(
    tmp_path_factory: Any, steps: int, samples: int, tables: bool, notes: str
) -> None:
    ts = tuple(float(t) for t in range(steps, 0, -1))
    values = np.random.default_rng(steps).random((steps, samples)) * 1e-7
    profile = Profile(
        name="p",
        model=ModelInfo("M"),
        prediction_type="noise",
        latent_shape=(2,),
        scheduler=SchedulerInfo("s", "vp"),
        timesteps=ts,
        samples=samples,
        notes=notes.encode("utf-8", "ignore").decode(),
        curves={"alpha_x": Curve(ts, values)},
        tables={"change": np.full((steps, steps, samples), 0.1, np.float32)} if tables else {},
    )
    assert read_profile(save_profile(profile, tmp_path_factory.mktemp("p") / "p.json")) == profile


def test_saving_twice_gives_the_same_bytes_and_replaces_stale_tables(tmp_path: Path) -> None:
    path = save_profile(make_profile(), tmp_path / "p.json")
    before = path.read_bytes(), path.with_suffix(".safetensors").read_bytes()
    save_profile(read_profile(path), path)
    assert (path.read_bytes(), path.with_suffix(".safetensors").read_bytes()) == before
    save_profile(make_profile(tables={}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    assert read_profile(path) == make_profile(tables={})


def test_saving_never_destroys_somebody_elses_file(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, weights)
    before = weights.read_bytes()
    with pytest.raises(ProfileError, match=r"model\.safetensors: would be overwritten, but does not hold the tables"):
        save_profile(make_profile(), tmp_path / "model.json")
    save_profile(make_profile(tables={}), tmp_path / "model.json")
    assert weights.read_bytes() == before


def test_saving_needs_a_json_name(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"save it as 'wan-2\.1\.json'"):
        save_profile(make_profile(), tmp_path / "wan-2.1")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_profile(make_profile(tables={}), tmp_path / "p.json")
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_profile(make_profile(tables={}, name="other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def edited(change: Any) -> Any:
    def damage(path: Path) -> None:
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return damage


def set_at(*keys: Any, to: Any) -> Any:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = to

    return edited(change)


def without(*keys: Any) -> Any:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return edited(change)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def tables_lost(path: Path) -> None:
    path.with_suffix(".safetensors").unlink()


def tables_flipped(path: Path) -> None:
    tables = path.with_suffix(".safetensors")
    content = bytearray(tables.read_bytes())
    content[-1] ^= 1
    tables.write_bytes(content)


def tables_replaced(content: bytes) -> Any:
    """A tables file whose hash is right, so that what is in it is judged."""
    import hashlib

    def damage(path: Path) -> None:
        path.with_suffix(".safetensors").write_bytes(content)
        set_at("tables", "sha256", to=hashlib.sha256(content).hexdigest())(path)

    return damage


def non_finite_table(path: Path) -> None:
    tables = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    tables["change"][0, 1, 2] = np.nan
    tables_replaced(safetensors.numpy.save(tables))(path)


def wrong_shape(path: Path) -> None:
    tables = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    tables["change"] = np.ascontiguousarray(tables["change"][:, :2])
    tables_replaced(safetensors.numpy.save(tables))(path)
    set_at("tables", "arrays", "change", "shape", to=[4, 2, 3])(path)


BAD_HEADER = struct.pack("<Q", 1 << 40) + b"{}"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "not valid JSON at line"),
        (lambda p: p.write_bytes(b""), "not valid JSON at line 1"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda p: p.write_text("[1]"), "holds a list, not an object"),
        (lambda p: p.unlink(), "no such file"),
        (set_at("format", to="other"), "field 'format' is not 'cachepolicies-profile'"),
        (without("format"), "field 'format'"),
        (set_at("version", to=7), "field 'version' is 7, this library reads 1 and 2 and 3"),
        (without("version"), "field 'version' is None"),
        (without("timesteps"), "field 'timesteps' is missing"),
        (without("curves"), "field 'curves' is missing"),
        (without("model", "class_name"), "the key 'class_name' is missing @ field.model"),
        (set_at("surprise", to=1), "unknown key 'surprise' @ field"),
        (set_at("model", "surprise", to=1), "unknown key 'surprise' @ field.model"),
        (set_at("samples", to="3"), "'3' is a str, expected int @ field.samples"),
        (set_at("samples", to=3.5), "3.5 is a float, expected int @ field.samples"),
        (set_at("name", to=3), "3 is a int, expected str @ field.name"),
        (set_at("guidance", to=True), "True is a bool, expected float @ field.guidance"),
        (set_at("timesteps", 1, to="x"), "'x' is a str, expected float @ field.timesteps[1]"),
        (set_at("timesteps", 1, to=1000.0), "field 'timesteps'[1] = 1000.0 follows 1000.0"),
        (set_at("timesteps", 1, to=float("nan")), "field 'timesteps'[1] is nan"),
        (set_at("timesteps", to=None), "field.timesteps"),
        (set_at("latent_shape", 0, to=-4), "field 'latent_shape' is (-4, 8, 8)"),
        (set_at("prediction_type", to="eps"), "field 'prediction_type' is 'eps'"),
        (set_at("curves", "alpha_x", "values", 2, 1, to=float("nan")), "non-finite value nan at [2, 1]"),
        (set_at("curves", "alpha_x", "values", 2, 1, to="x"), "not a rectangular array of numbers"),
        (set_at("curves", "alpha_x", "values", 2, to=[1.0]), "not a rectangular array of numbers"),
        (set_at("curves", "alpha_x", "t", 0, to=1.0), "curve field 't'"),
        (without("curves", "alpha_x", "values"), "the key 'values' is missing"),
        (set_at("curves", "alpha_x", to=[]), "alpha_x"),
        (tables_lost, "cannot be read (No such file or directory); put it beside the JSON file"),
        (tables_flipped, "field 'tables.sha256' says"),
        (tables_replaced(BAD_HEADER), "is not valid safetensors"),
        (tables_replaced(safetensors.numpy.save({"change": np.ones(2)})), "field 'tables.arrays' says"),
        (non_finite_table, "table 'change' has the non-finite value nan at [0, 1, 2]"),
        (wrong_shape, "table 'change' has shape (4, 2, 3), expected (steps, steps, samples) = (4, 4, 3)"),
        (set_at("tables", "file", to="../other.safetensors"), "field 'tables.file' is '../other.safetensors'"),
        (set_at("tables", to=[]), "field 'tables.file' is None"),
        (set_at("tables", "more", to=1), "field 'tables' has the unknown key 'more'"),
    ],
)
def test_a_bad_file_is_named_with_field_and_value(tmp_path: Path, damage: Any, said: str) -> None:
    path = save_profile(make_profile(), tmp_path / "p.json")
    damage(path)
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    message = str(caught.value)
    assert message.startswith(f"profile {path}: ")
    assert said in message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = save_profile(make_profile(tables={}), tmp_path / "p.json")
    content = path.read_bytes()
    for cut in range(0, len(content) - 2, 97):
        path.write_bytes(content[:cut])
        with pytest.raises(ProfileError):
            read_profile(path)


# --------------------------------------------------------------------------------------- versions 2 and 3


def full_profile(steps: int = 5, samples: int = 3, **changes: Any) -> Profile:
    """A measured profile with everything that versions 2 and 3 added."""
    rng = np.random.default_rng(1)
    ratios = np.vstack([np.ones((1, samples)), 0.8 + 0.4 * rng.random((steps - 1, samples))])
    fields: dict[str, Any] = {
        "tables": {
            "magnitude_ratio.cond": ratios,
            "magnitude_ratio.uncond": ratios**0.5,
            "signal_change.modulated_input": rng.random((steps - 1, samples)),
            "output_change": rng.random((steps - 1, samples)),
        },
        "polynomials": {"modulated_input": Polynomial((0.5, 2.0, 0.01), 0.93)},
        "settings": {"magcache": {"threshold": 0.1, "never": (1, 2)}, "teacache": {"threshold": 0.2}},
        "recommended": [Recommendation("magcache", {"threshold": 0.1}, 2.0, 1.9, "a card", "480p", "README", "slow")],
        "source": {"magcache": {"paper": "arXiv", "sha256": ["a", "b"]}},
        "irregularities": ["one", "two"],
        "trials": [
            Trials("hold", "signed", "geometric", (2, 3), (7, 8), [[0.2, 0.1], [0.1, 0.05]], [[0.1, 0.2], [0.0, 0.1]]),
            Trials("linear", "signed", "geometric", (2,), (), [[0.2, 0.1]]),
        ],
    }
    return make_profile(steps, samples, **{**fields, **changes})


def published_profile(**changes: Any) -> PublishedProfile:
    fields: dict[str, Any] = {
        "name": "theirs",
        "model": ModelInfo("Net"),
        "prediction_type": None,
        "latent_shape": None,
        "scheduler": None,
        "timesteps": (),
        "dtype": None,
        "stated_steps": 4,
        "tables": {"magnitude_ratio": np.array([[1.0], [0.9], [0.1 + 0.2], [1 / 3]])},
        "polynomials": {"modulated_input": Polynomial((1.0, 0.0))},
    }
    return PublishedProfile(**{**fields, **changes})


def test_everything_of_the_later_versions_survives_the_disk(tmp_path: Path) -> None:
    profile = full_profile()
    again = read_profile(save_profile(profile, tmp_path / "p.json"))
    assert again == profile
    assert again.version == 3
    assert again.trials[0].picture_rms is not None
    assert again.trials[1].picture_rms is None
    assert again.settings["magcache"]["never"] == [1, 2]
    assert again.recommended[0].note == "slow"
    assert hash(again) == hash(profile)
    assert again != attrs.evolve(profile, irregularities=("one",))
    assert list(again.magnitude_ratios) == ["cond", "uncond"]


def test_tables_of_a_published_profile_are_in_the_json(tmp_path: Path) -> None:
    profile = published_profile()
    path = save_profile(profile, tmp_path / "p.json")
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
    stored = json.loads(path.read_text())["tables"]["inline"]["magnitude_ratio"]
    assert stored == {"shape": [4, 1], "dtype": "float64", "values": [1.0, 0.9, 0.1 + 0.2, 1 / 3]}
    again = read_profile(path)
    assert again == profile
    assert again.tables["magnitude_ratio"].dtype == np.float64
    assert again.num_steps == 4
    assert list(again.magnitude_ratios) == [""]
    assert load_module.tables_file(path) is None  # nothing to fetch beside it
    save_profile(make_profile(), path)
    save_profile(profile, path)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


OF_VERSION_2 = ("origin", "stated_steps", "polynomials", "settings", "recommended", "source", "irregularities")
OF_VERSION_3 = ("trials",)


def as_version(version: int, path: Path) -> None:
    raw = json.loads(path.read_text())
    for name in (*(OF_VERSION_2 if version < 2 else ()), *OF_VERSION_3):
        del raw[name]
    path.write_text(json.dumps({**raw, "version": version}))


@pytest.mark.parametrize("version", [1, 2])
def test_an_earlier_version_is_read_and_written_again_as_todays(tmp_path: Path, version: int) -> None:
    path = save_profile(make_profile(), tmp_path / "p.json")
    now = path.read_bytes()
    as_version(version, path)
    old = read_profile(path)
    assert old == make_profile()
    assert (old.origin, old.version, old.settings, old.recommended, old.trials) == ("measured", 3, {}, (), ())
    save_profile(old, path)
    assert path.read_bytes() == now


@pytest.mark.parametrize(("version", "field"), [(1, "origin"), (2, "trials")])
def test_an_earlier_version_has_no_later_fields(tmp_path: Path, version: int, field: str) -> None:
    path = save_profile(make_profile(), tmp_path / "p.json")
    set_at("version", to=version)(path)
    with pytest.raises(ProfileError, match=f"field '{field}' is not part of version {version}"):
        read_profile(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgets": ()}, "field 'budgets' is \\(\\), expected increasing"),
        ({"budgets": (3, 2)}, "field 'budgets' is \\(3, 2\\)"),
        ({"budgets": (0, 2)}, "field 'budgets' is \\(0, 2\\)"),
        ({"rms": [[0.1, 0.1]]}, "field 'rms' has shape \\(1, 2\\), expected \\(2, samples\\)"),
        ({"rms": [[0.1], [0.1, 0.2]]}, "not a rectangular array"),
        ({"rms": [[0.1, 0.1], [0.1, -0.1]]}, "field 'rms' has the value -0.1"),
        ({"rms": [[0.1, 0.1], [0.1, np.inf]]}, "trials field 'rms'"),
        ({"picture_rms": [[0.1], [0.1]]}, "field 'picture_rms' has shape \\(2, 1\\)"),
        ({"seeds": (1,)}, "1 seeds for 2 samples"),
    ],
)
def test_bad_trials(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        attrs.evolve(full_profile().trials[0], **change)


def test_trials_of_more_evaluations_than_steps() -> None:
    tried = attrs.evolve(full_profile().trials[0], budgets=(2, 6))
    with pytest.raises(ProfileError, match="has 6 evaluations of 5 steps"):
        full_profile(trials=[tried])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("origin"), "field 'origin' is missing"),
        (set_at("origin", to="guessed"), "guessed"),
        (set_at("origin", to="measured"), "field 'prediction_type' is None, which only a published profile may have"),
        (set_at("stated_steps", to="4"), "'4' is a str, expected int"),
        (set_at("polynomials", "modulated_input", "coefficients", to=[]), "polynomial field 'coefficients' is ()"),
        (set_at("polynomials", "modulated_input", "coefficients", 0, to="1"), "'1' is a str, expected float"),
        (set_at("settings", to=[]), "field 'settings' is [], not a mapping"),
        (set_at("settings", to={"magcache": 3}), "field 'settings' has 3 for policy 'magcache'"),
        (set_at("recommended", to=[{"policy": "x"}]), "the key 'settings' is missing @ field.recommended[0]"),
        (set_at("source", to="x"), "field 'source' is 'x', not a mapping"),
        (set_at("irregularities", to=[1]), "1 is a int, expected str"),
        (set_at("tables", "more", to=1), "field 'tables' has 'inline' and other keys"),
        (set_at("tables", "inline", to=[]), "field 'tables.inline' is a list, not an object"),
        (set_at("tables", "inline", "magnitude_ratio", to=[1.0]), "has not exactly the keys shape, dtype and values"),
        (set_at("tables", "inline", "magnitude_ratio", "shape", to=[3, 1]), "is no table (cannot reshape"),
        (set_at("tables", "inline", "magnitude_ratio", "dtype", to="float65"), "has dtype 'float65', expected one of"),
        (set_at("tables", "inline", "magnitude_ratio", "dtype", to="object"), "has dtype 'object', expected one of"),
        (set_at("tables", "inline", "magnitude_ratio", "values", 2, to="x"), "is no table"),
        (set_at("tables", "inline", "magnitude_ratio", "values", 2, to=None), "non-finite value nan at [2, 0]"),
        (set_at("tables", "inline", "magnitude_ratio", "values", 2, to=-1.0), "has the value -1.0"),
    ],
)
def test_a_bad_published_file_is_named_with_field_and_value(tmp_path: Path, damage: Any, said: str) -> None:
    path = save_profile(published_profile(), tmp_path / "p.json")
    damage(path)
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"profile {path}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prediction_type": None}, "field 'prediction_type' is None, which only a published profile may have"),
        ({"latent_shape": None}, "field 'latent_shape' is None"),
        ({"scheduler": None}, "field 'scheduler' is None"),
        ({"dtype": None}, "field 'dtype' is None"),
        ({"stated_steps": 4}, "field 'stated_steps' is 4, which only a published profile may have"),
        ({"tables": {"magnitude_ratio": np.ones((5, 3))}}, "expected (steps, samples) = (4, 3)"),
        ({"tables": {"magnitude_ratio.cond": np.full((4, 3), 0.9)}}, "in row 0, expected 1"),
        ({"tables": {"magnitude_ratio": np.array([[1.0] * 3, [0.0] * 3] * 2)}}, "has the value 0.0"),
        ({"tables": {"output_change": np.ones((4, 3))}}, "expected (steps - 1, samples) = (3, 3)"),
        ({"tables": {"signal_change.x": np.full((3, 3), -0.1)}}, "has the value -0.1"),
        ({"settings": {"magcache": {"threshold": float("nan")}}}, "field 'settings' holds something JSON cannot"),
    ],
)
def test_bad_records_of_version_2(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        attrs.evolve(make_profile(), **change)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tables": {"output_change": np.ones((3, 3))}}, "only a calibration measures it"),
        ({"stated_steps": 5}, "field 'stated_steps' is 5, but there are 4 timesteps"),
        ({"stated_steps": 0}, "field 'stated_steps' is 0"),
        ({"tables": {"magnitude_ratio": np.ones((0, 3))}}, "has shape (0, 3)"),
        ({"tables": {"magnitude_ratio": np.float64(1.0)}}, "has shape ()"),
    ],
)
def test_bad_published_records(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        as_published(make_profile(), **change)
    assert said in str(caught.value)


def test_the_file_says_which_record_it_holds(tmp_path: Path) -> None:
    for profile in (full_profile(), published_profile()):
        again = read_profile(save_profile(profile, tmp_path / f"{profile.origin}.json"))
        assert type(again) is type(profile)
        assert again.origin == profile.origin
    assert as_published(full_profile(), tables={}) != attrs.evolve(full_profile(), tables={})
    with pytest.raises(TypeError, match="origin"):
        attrs.evolve(full_profile(), origin="published")  # type: ignore[call-arg]


def test_a_published_profile_that_says_no_number_of_steps() -> None:
    assert published_profile(stated_steps=None).num_steps == 0
    assert len(published_profile(stated_steps=9).tables["magnitude_ratio"]) == 4  # as some sources have it


def test_polynomials() -> None:
    polynomial = Polynomial([2, 0, 1], 0.5)
    assert polynomial.coefficients == (2.0, 0.0, 1.0)
    assert polynomial.degree == 2
    assert polynomial(3.0) == 19
    assert polynomial(np.array([0.0, 1.0])).tolist() == [1, 3]
    with pytest.raises(ProfileError, match=r"'coefficients' is \(nan"):
        Polynomial((float("nan"),))
    with pytest.raises(ProfileError, match=r"'r_squared' is 1\.5"):
        Polynomial((1.0,), 1.5)


def test_the_plots_of_ratios_and_polynomials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    plain = Figure.savefig

    def savefig(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(self)
        plain(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    profile = full_profile()
    assert plot_magnitude_ratios(profile, tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    left, right = drawn[-1].axes
    ratios = profile.magnitude_ratios["cond"]
    assert left.lines[0].get_ydata().tolist() == ratios.mean(axis=1).tolist()
    assert right.lines[0].get_ydata().tolist() == pytest.approx(ratios.cumprod(axis=0).mean(axis=1).tolist())
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx((ratios.mean(axis=1) + ratios.std(axis=1)).max())
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["cond", "uncond"]

    plot_polynomial(profile, tmp_path / "p.svg")
    fit, residuals = drawn[-1].axes
    change, output = profile.tables["signal_change.modulated_input"], profile.tables["output_change"]
    points = fit.collections[0].get_offsets()
    assert np.allclose(points, np.stack([change.ravel(), output.ravel()], axis=1))
    expected = output - profile.polynomials["modulated_input"](change)
    assert np.allclose(residuals.collections[0].get_offsets()[:, 1], expected.ravel())
    assert "0.930" in fit.get_legend().get_texts()[-1].get_text()
    plot_polynomial(published_profile(), tmp_path / "q.png", "modulated_input")
    (only,) = drawn[-1].axes
    assert only.lines[0].get_ydata()[-1] == pytest.approx(only.lines[0].get_xdata()[-1])
    with pytest.raises(NeedsError, match="needs the polynomial of 'x'; profile 'theirs' has: modulated_input"):
        plot_polynomial(published_profile(), tmp_path / "q.png", "x")
    with pytest.raises(NeedsError, match="needs a polynomial; profile 'demo' has: none"):
        plot_polynomial(make_profile(), tmp_path / "q.png")
    with pytest.raises(NeedsError, match="needs 'magnitude_ratio'"):
        plot_magnitude_ratios(make_profile(), tmp_path / "q.png")


def test_the_summary_shows_what_is_new() -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summarise(full_profile()))
    text = console.export_text()
    for said in (
        "threshold=0.1, never=[1, 2]",
        "0.5, 2, 0.01",
        "0.9300",
        "uncond, mean",
        "a card",
        "480p; slow",
        "- two",
    ):
        assert said in text
    theirs = published_profile(source={"magcache": {"paper": "arXiv:1"}}, irregularities=("[odd]",))
    console.print(summarise(theirs))
    text = console.export_text()
    for said in ("published", "4, timesteps not stated", "paper=arXiv:1", "- [odd]", "unknown", "all streams, mean"):
        assert said in text
    assert "seeds" not in text


def test_the_commands_list_and_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cachepolicies.cli import app

    path = save_profile(full_profile(), tmp_path / "p.json")
    for what in ("sensitivities", "ratios", "polynomial"):
        target = tmp_path / f"{what}.png"
        result = CliRunner().invoke(app, ["profiles", "show", str(path), "--plot", str(target), "--what", what])
        assert result.exit_code == 0
        assert target.exists()
    published = save_profile(published_profile(), tmp_path / "q.json")
    result = CliRunner().invoke(app, ["profiles", "show", str(published), "--plot", str(tmp_path / "q.png")])
    assert result.exit_code == 0
    assert (tmp_path / "q.png").exists()
    result = CliRunner().invoke(app, ["profiles", "show", str(path), "--plot", "x.png", "--what", "weights"])
    assert result.exit_code != 0
    monkeypatch.setattr(load_module, "shipped_profiles", lambda: {"p": path, "q": published})
    monkeypatch.setenv("CACHEPOLICIES_HOME", str(tmp_path / "home"))
    lines = CliRunner().invoke(app, ["profiles"], env={"COLUMNS": "80"}).output.splitlines()
    measured, theirs = (lines[at + 1 : at + 3] for at in map(lines.index, ("  p", "  q")))
    assert "sencache, magcache, teacache" in measured[0]
    assert "measured" in measured[1]
    assert "magcache, teacache" in theirs[0]
    assert theirs[1] == "    published, 4 steps"


# ---------------------------------------------------------------------------------------------- finding


def test_by_file_and_by_folder(tmp_path: Path) -> None:
    path = save_profile(make_profile(), tmp_path / "p.json")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    for source in (path, str(path), tmp_path, str(tmp_path)):
        assert load_profile(source) == make_profile()
    save_profile(make_profile(), tmp_path / "q.json")
    with pytest.raises(ProfileError, match=r"expected one profile \(.json\), found p.json, q.json; give the path"):
        load_profile(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProfileError, match="found none"):
        load_profile(tmp_path / "empty")
    for missing in (tmp_path / "no", str(tmp_path / "no"), str(tmp_path / "no.json"), "no.json", "org/no.json"):
        with pytest.raises(ProfileError, match="no such file"):
            load_profile(missing)


def test_by_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "cachepolicies" / "profiles"
    package.mkdir(parents=True)
    monkeypatch.setattr(load_module, "__file__", str(package / "load.py"))
    assert shipped_profiles() == {}
    save_profile(make_profile(name="repo"), tmp_path / "profiles" / "video-dit.json")
    assert shipped_profiles() == {}  # not a checkout without its pyproject.toml
    (tmp_path / "pyproject.toml").write_text("")
    save_profile(make_profile(name="wheel"), package / "shipped" / "image-dit.json")
    assert list(shipped_profiles()) == ["image-dit", "video-dit"]
    assert load_profile("video-dit").name == "repo"
    assert load_profile("image-dit").name == "wheel"
    with pytest.raises(UnknownNameError) as caught:
        load_profile("video-dti")
    assert "unknown profile 'video-dti'; did you mean 'video-dit'? known: image-dit, video-dit" in str(caught.value)
    with pytest.raises(UnknownNameError):
        load_profile("")


def test_every_shipped_profile_is_valid() -> None:
    for name in shipped_profiles():
        profile = load_profile(name)
        if profile.origin == "measured":
            profile.require("shipped", ["alpha_x", "alpha_t", "displacement", "change"])


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A Hub cache as huggingface_hub lays it out: a snapshot that the ref main points to."""
    folder = tmp_path / "hub" / "models--some-org--profiles"
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "v1").write_text(COMMIT)
    save_profile(make_profile(name="first"), snapshot / "first.json")
    save_profile(make_profile(name="nested"), snapshot / "more" / "nested.json")
    (snapshot / "config.json").write_text("{}")
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("some-org/profiles", "first"),
        ("some-org/profiles:first.json", "first"),
        ("some-org/profiles@v1", "first"),
        ("some-org/profiles@v1:more/nested.json", "nested"),
        (f"some-org/profiles@{COMMIT}:more/nested.json", "nested"),
    ],
)
def test_by_hub_repository(hub_cache: Path, source: str, name: str) -> None:
    assert load_profile(source, cache_dir=hub_cache, local_files_only=True) == make_profile(name=name)


@pytest.mark.parametrize(
    "source", ["some-org/other", "some-org/profiles@v2", "some-org/profiles:none.json", "some-org/bad--name"]
)
def test_what_the_hub_does_not_give_is_named(hub_cache: Path, source: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(source, cache_dir=hub_cache, local_files_only=True)
    assert repr(re.split("[@:]", source)[0]) in str(caught.value)
    assert re.search(r"not a path here, and (its \.json files|'none\.json') could not be", str(caught.value))


def test_a_hub_profile_without_its_tables_is_refused(hub_cache: Path) -> None:
    next(hub_cache.rglob("first.safetensors")).unlink()
    with pytest.raises(ProfileError, match=r"first\.safetensors"):
        load_profile("some-org/profiles", cache_dir=hub_cache, local_files_only=True)


def test_the_hub_is_asked_for_json_first_and_only_this_profiles_tables(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []
    snapshot = next(hub_cache.glob("*/snapshots/*"))

    def whole(repo: str, **options: Any) -> str:
        asked.append((repo, options["revision"], options["allow_patterns"]))
        return str(snapshot)

    def one(repo: str, name: str, **options: Any) -> str:
        asked.append((repo, options["revision"], name))
        return str(snapshot / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", whole)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    assert load_profile("a/b@r").name == "first"
    assert asked == [("a/b", "r", ["*.json"]), ("a/b", "r", "first.safetensors")]
    asked.clear()
    assert load_profile("a/b:more/nested.json").name == "nested"
    assert asked == [("a/b", None, "more/nested.json"), ("a/b", None, "more/nested.safetensors")]


def test_a_repository_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def missing(*_: Any, **__: Any) -> str:
        # made without its constructor, which wants a response of whichever HTTP client the installed version uses
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ProfileError, match="'a/b': neither a path here nor a repository on the Hub"):
        load_profile("a/b")


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(make_profile(), tmp_path / "org" / "name" / "p.json")
    monkeypatch.chdir(tmp_path)
    assert load_profile("org/name") == make_profile()


# ---------------------------------------------------------------------------------------------- matching


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.config = {"width": width, "_diffusers_version": str(width)}
        self.layer = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


class Guided:
    def __init__(self, net: Net) -> None:
        self.model_class_name = model_class_name(net)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def a_function(x: Tensor, t: Tensor) -> Tensor:
    return x


def test_model_class_names() -> None:
    net = Net()
    assert model_class_name(net) == "Net"
    assert model_class_name(net.forward) == "Net"
    assert model_class_name(functools.partial(net, t=1)) == "Net"
    assert model_class_name(torch.compile(net, backend="eager")) == "Net"
    assert model_class_name(Guided(net)) == "Net"
    assert model_class_name(a_function) == "a_function"
    assert model_class_name(Guided.__new__(Guided)) == "Guided"


def test_hashes() -> None:
    torch.manual_seed(0)
    net, other = Net(), Net(3)
    assert config_hash(net) == config_hash(Net()) != config_hash(other)
    newer = Net()
    newer.config["_diffusers_version"] = "later"
    assert config_hash(newer) == config_hash(net)
    assert config_hash(a_function) is None
    assert weights_hash(a_function) is None
    same = Net()
    same.load_state_dict(net.state_dict())
    assert weights_hash(same) == weights_hash(net) == weights_hash(functools.partial(net))
    with torch.no_grad():
        same.scale.add_(1)
    assert weights_hash(same) != weights_hash(net)


class Scheme:
    """What `check_profile` reads of a scheduler."""

    def __init__(self, name: str, family: str, prediction_type: str, **config: Any) -> None:
        self.name, self.family, self.prediction_type, self.config = name, family, prediction_type, config


def fitting(**config: Any) -> Any:
    return Scheme("flow-euler", "flow", "velocity", **{"shift": 3.0, "spans": (1, 2), **config})


def test_what_agrees_leaves_no_note() -> None:
    net = Net()
    profile = make_profile(model=ModelInfo("Net", config_hash(net)))
    assert (
        check_profile(profile, model=net, scheduler=fitting(), latent_shape=[4, 8, 8], num_steps=4, dtype=torch.float32)
        == ()
    )
    assert check_profile(profile) == ()


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ({"model": nn.Linear(1, 1)}, "calibrated for the model class 'Net', this model is 'Linear'"),
        (
            {"scheduler": Scheme("ddim", "vp", "velocity")},
            "calibrated for scheduler family 'flow', scheduler 'ddim' has 'vp'",
        ),
        (
            {"scheduler": Scheme("flow-x", "flow", "x0")},
            "calibrated for prediction type 'velocity', scheduler 'flow-x' has 'x0'",
        ),
    ],
)
def test_what_changes_the_meaning_is_refused_naming_both(against: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        check_profile(make_profile(), **against)
    assert "profile 'demo'" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("against", "said"),
    [
        ({"model": a_function}, "whether the function 'a_function' wraps one cannot be told"),
        ({"latent_shape": (4, 16, 16)}, "calibrated at latent shape (4, 8, 8), used at (4, 16, 16)"),
        ({"latent_shape": (16, 8, 8)}, "calibrated at latent shape and channels (4, 8, 8), used at (16, 8, 8)"),
        ({"num_steps": 30}, "calibrated with 4 steps, used with 30"),
        ({"dtype": torch.bfloat16}, "calibrated in float32, used in bfloat16"),
        ({"dtype": "torch.float16"}, "calibrated in float32, used in float16"),
        ({"model": Net()}, "calibrated for another configuration of Net (config hash cccccccccccc, this model "),
        ({"scheduler": fitting(shift=1.0, extra=2)}, "other settings of flow-euler: extra None -> 2, shift 3.0 -> 1.0"),
        ({"scheduler": Scheme("flow-heun", "flow", "velocity")}, "with scheduler 'flow-euler', used with 'flow-heun'"),
    ],
)
def test_what_is_allowed_is_noted(against: dict[str, Any], said: str) -> None:
    (note,) = check_profile(make_profile(), **against)
    assert note.startswith("profile 'demo' was ")
    assert said in note


# ---------------------------------------------------------------------------------------------- showing


@pytest.mark.parametrize("names", [("alpha_x", "alpha_t"), ("alpha_x", "alpha_t", "rho", "weight")], ids=len)
def test_the_plot_has_a_panel_for_every_curve_with_its_bands(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    plain = figure_module.Figure.savefig

    def savefig(figure: Any, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        plain(figure, *args, **kwargs)

    monkeypatch.setattr(figure_module.Figure, "savefig", savefig)
    ts = make_profile().timesteps
    curves = {**make_profile().curves, "rho": Curve(ts, np.linspace(-1, 1, 12).reshape(4, 3))}
    profile = make_profile(curves={name: curves[name] for name in (*names, "drift")})
    path = plot_sensitivities(profile, tmp_path / "new" / "p.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    for axes, name in zip(drawn[0].axes, names, strict=True):
        line = axes.lines[0]
        low, high = axes.get_ylim()
        assert low == 0 if name != "rho" else (low, high) == (-1.05, 1.05)
        curve = profile.curves[name]
        assert line.get_xdata().tolist() == list(curve.t)
        assert line.get_ydata().tolist() == curve.mean().tolist()
        outer, inner = axes.collections
        assert outer.get_paths()[0].vertices[:, 1].max() == pytest.approx(curve.quantile(0.95).max())
        assert inner.get_paths()[0].vertices[:, 1].max() == pytest.approx(curve.quantile(0.75).max())
        assert axes.xaxis_inverted()
    with pytest.raises(SettingsError, match=r"cannot draw to .*p\.xyz: .*use the suffix .png"):
        plot_sensitivities(profile, tmp_path / "p.xyz")
    with pytest.raises(NeedsError, match="needs 'alpha_x', 'alpha_t'"):
        plot_sensitivities(make_profile(curves={}), path)


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def no_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(NeedsError, match=r"install the extra `plots`"):
        plot_sensitivities(make_profile(), tmp_path / "p.png")


def test_the_summary_shows_provenance_and_curves() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summarise(make_profile(steps=50)))
    text = console.export_text()
    for said in ("profile demo", "Net", "flow-euler (flow)", "shift=3.0", "4 x 8 x 8", "alpha_t", "weight", "1000"):
        assert said in text
    assert "displacement 50x50x3" in text
    assert "cccccccccccc" in text
    console.print(summarise(make_profile(curves={}, tables={}, final_t=None)))


def test_profiles_are_light_to_import() -> None:
    import subprocess
    import sys

    heavy = ("diffusers", "matplotlib", "scipy.optimize", "huggingface_hub", "sklearn", "pandas")
    code = (
        "import sys, cachepolicies.profiles, cachepolicies.calibration;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_profiles_can_be_moved_together(tmp_path: Path) -> None:
    save_profile(make_profile(), tmp_path / "a" / "p.json")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load_profile(tmp_path / "b") == make_profile()
