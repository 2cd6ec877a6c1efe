"""The kit: what it writes is installed from wheels, with no checkout near, listed, tested and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cachepolicies.base.errors import SettingsError
from cachepolicies.cli import app
from cachepolicies.kit import KINDS, write_package
from cachepolicies.kit.write import Names

ROOT = Path(__file__).resolve().parents[1]
NAMES = {kind: "NovaDiT2DModel" if kind == "adapter" else f"nova-{kind}" for kind in KINDS}


def run(python: Path, *arguments: str, folder: Path) -> str:
    """Run Python in a folder, with nothing of this checkout on its path; returns what it prints."""
    around = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "PYTEST"))}
    done = subprocess.run([str(python), *arguments], cwd=folder, env=around, text=True, capture_output=True)
    assert not done.returncode, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """Write every kind, build wheels of them, of ours and of the plugins, and install these into an environment.

    It sees what ours depends on by a path, but not ours, which is installed here in place.
    """
    folder = tmp_path_factory.mktemp("kit")
    packages = {kind: write_package(name, kind, folder / "packages") for kind, name in NAMES.items()}
    plugins = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    checkout = folder / "checkout"  # a build writes next to what it builds
    ignored = shutil.ignore_patterns("__pycache__", ".*", "build", "site", "tests", "bench", "training", "docs")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    wheels = folder / "wheels"
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    built = [checkout, *(checkout / "plugins" / plugin.name for plugin in plugins), *packages.values()]
    run(Path(sys.executable), "-m", "pip", "wheel", *options, "-w", str(wheels), *map(str, built), folder=folder)
    shutil.rmtree(checkout)
    # By themselves the suites try more examples of every property; `pytest plugins` does.
    fewer = "from hypothesis import settings\nsettings.register_profile('fewer', max_examples=8)\n"
    (folder / "packages" / "fewer.py").write_text(fewer + "settings.load_profile('fewer')\n")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = [str(wheel) for wheel in wheels.glob("*.whl")]
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target", str(own)]
    run(Path(sys.executable), "-m", "pip", "install", *options, *found, folder=folder)
    return python, packages


@pytest.mark.timeout(600)
def test_what_is_written_is_listed_and_passes_its_tests(installed):
    python, packages = installed
    folder = packages["policy"].parent
    where = run(python, "-c", "import cachepolicies; print(cachepolicies.__file__)", folder=folder)
    assert "environment" in where
    listed = json.loads(run(python, "-m", "cachepolicies", "policies", "--json", folder=folder))
    assert NAMES["policy"] in json.dumps(listed)
    names = "; ".join(f"print(*load_plugins().{KINDS[kind]}.names())" for kind in NAMES)
    found = run(python, "-c", f"from cachepolicies.registry.load import load_plugins; {names}", folder=folder)
    for (kind, name), known in zip(NAMES.items(), found.splitlines(), strict=True):
        assert name in known.split(), kind
    tests = [str(package / "tests") for package in packages.values()]
    passed = run(python, "-m", "pytest", "-q", "-p", "fewer", "-p", "no:cacheprovider", *tests, folder=folder)
    assert " passed" in passed
    assert "failed" not in passed


@pytest.mark.timeout(600)
def test_every_plugin_works_from_its_wheel(installed):
    """Their tests are those of the repository; what they import is installed."""
    python, packages = installed
    folder = packages["policy"].parent
    tests = sorted(str(path) for path in (ROOT / "plugins").glob("*/tests"))
    options = ["-q", "-p", "fewer", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    passed = run(python, "-m", "pytest", *options, "--import-mode=importlib", *tests, folder=folder)
    assert " passed" in passed


def test_plugins_import_nothing_private():
    """Names that begin with an underscore, and the folders that are not documented, are ours alone."""
    public = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")}
    for path in (ROOT / "plugins").rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("from", "import") and words[1].partition(".")[0] == "cachepolicies":
                parts = words[1].split(".")
                assert not any(part.startswith("_") for part in parts), f"{path}: {line}"
                assert len(parts) == 1 or parts[1] in public, f"{path}: {line}"
                names = [name.strip(",()") for name in words[3:]] if words[0] == "from" else []
                assert not any(name.startswith("_") for name in names), f"{path}: {line}"


def test_the_command_writes_a_package_and_says_what_is_next(tmp_path):
    done = CliRunner().invoke(app, ["new", "every-third", "--kind", "policy", "--into", str(tmp_path)])
    assert done.exit_code == 0
    folder = tmp_path / "cachepolicies-every-third"
    assert f"wrote {folder}" in done.output.replace("\n", "")
    assert "class EveryThird(CachePolicy)" in (folder / "src/cachepolicies_every_third/every_third.py").read_text()
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "pyproject.toml",
        "src/cachepolicies_every_third/__init__.py",
        "src/cachepolicies_every_third/every_third.py",
        "src/cachepolicies_every_third/plugin.py",
        "src/cachepolicies_every_third/py.typed",
        "tests/test_every_third.py",
    ]
    again = CliRunner().invoke(app, ["new", "every-third", "--into", str(tmp_path)])
    assert again.exit_code == 2
    assert "is there already" in again.output


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("Every Third", "policy", r"name is 'Every Third'; give small letters and digits"),
        ("every_third", "site", r"words joined by '-'"),
        ("x" * 61, "policy", r"at most 60 characters"),
        ("nova", "adapter", r"an adapter is named by the class of its model"),
        ("sencache", "policy", r"policy 'sencache' is there already, registered by cachepolicies"),
        ("FluxTransformer2DModel", "adapter", r"is there already, registered by cachepolicies"),
        ("every-third", "score", r"kind is 'score'; it is one of policy, substitute"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, kind, message):
    with pytest.raises(SettingsError, match=message):
        write_package(name, kind, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot write .*file"):
        write_package("every-third", "policy", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "distribution", "made"),
    [
        ("NovaDiT2DModel", "cachepolicies-nova-dit2d-model", "nova_dit2d_model"),
        ("HTTPModel3D", "cachepolicies-http-model3d", "http_model3d"),
    ],
)
def test_names_of_an_adapter_follow_the_class(name, distribution, made):
    names = Names.of(name, "adapter")
    assert (names.distribution, names.made_by) == (distribution, made)
