"""The package as it is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cachepolicies
from cachepolicies.profiles import config_hash, load_profile, weights_hash
from cachepolicies.reference.image_dit import load_image_dit
from cachepolicies.reference.video_dit import load_video_dit

HEAVY = ("diffusers", "matplotlib", "scipy.optimize", "sklearn", "torchmetrics", "pandas", "transformers")


def test_import_is_light():
    code = f"import sys, json, cachepolicies; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_public_names_are_there_and_no_others_are_promised():
    assert sorted(cachepolicies.__all__) == cachepolicies.__all__
    assert all(hasattr(cachepolicies, name) for name in cachepolicies.__all__)


def test_typed_marker_is_shipped():
    assert (Path(cachepolicies.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(("name", "load"), [("video-dit", load_video_dit), ("image-dit", load_image_dit)])
def test_a_shipped_profile_was_measured_on_the_shipped_weights(name, load):
    model = load()
    profile = load_profile(name)
    assert profile.model.weights_hash == weights_hash(model)
    assert profile.model.config_hash == config_hash(model)


def test_weights_are_small_and_have_their_provenance():
    folder = Path(cachepolicies.__file__).parent / "reference" / "weights"
    weights = sorted(folder.glob("*.safetensors"))
    assert {path.stem for path in weights} >= {"video-dit", "image-dit", "digit-classifier"}
    for path in weights:
        assert path.stat().st_size <= 5 * 2**20
        assert json.loads(path.with_suffix(".json").read_text())["script"].startswith("training/")
        assert path.with_suffix(".loss.csv").exists()


def test_every_fragment_of_the_changelog_has_a_known_kind_and_says_something():
    root = Path(__file__).resolve().parent.parent
    kinds = re.findall(r'\[\[tool\.towncrier\.type\]\]\ndirectory = "(\w+)"', (root / "pyproject.toml").read_text())
    assert kinds
    for path in (root / "changelog.d").iterdir():
        if path.name != "README.md":
            assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(kinds)})\.md", path.name), path.name
            assert path.read_text().rstrip().endswith("."), path.name


def test_the_oldest_versions_that_are_tested_are_those_that_are_promised():
    root = Path(__file__).resolve().parent.parent
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", (root / "pyproject.toml").read_text(), re.M | re.S)
    assert listed is not None
    promised = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', listed[1]))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (root / "constraints-oldest.txt").read_text(), re.M))
    assert {name: pin.removesuffix(".0") for name, pin in pins.items()} == promised
