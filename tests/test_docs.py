"""README and docs say what is true: their snippets run, and what they name exists."""

from __future__ import annotations

import importlib
import inspect
import linecache
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from attrs import frozen
from typer.testing import CliRunner

import cachepolicies
from adapter_table import BEGIN, END, generated, replaced
from cachepolicies import hookspecs, load_profile
from cachepolicies.cli import app
from cachepolicies.registry.load import load_plugins
from cachepolicies.registry.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
HOOKS = [name for name in vars(hookspecs) if name.startswith("cachepolicies_")]

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
INFO = re.compile(r"\w+|\{ \.\w+(?: \.\w+)* \}")


@frozen
class Block:
    """A fenced block: its language, further words of its info string, its text, and the line its text begins at."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    content = page.read_text()
    found = []
    for match in FENCE.finditer(content):
        # {.python .notest}: in docs/ the renderer takes further words for nothing but classes.
        language, *words = [word.lstrip(".") for word in match["info"].strip(" {}").split()] or [""]
        text = "".join(line.removeprefix(match["indent"]) for line in match["body"].splitlines(keepends=True))
        found.append(Block(language, tuple(words), text, content.count("\n", 0, match.start("body")) + 1))
    return found


def snippets(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and "notest" not in block.words]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


PAGES_WITH_SNIPPETS = [page for page in PAGES if snippets(page)]


@pytest.mark.parametrize("page", PAGES_WITH_SNIPPETS, ids=name_of)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = types.ModuleType("snippets_of_" + re.sub(r"\W", "_", name_of(page)))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in snippets(page):
        # Leading newlines: a traceback then shows the line of the page.
        source = "\n" * (block.line - 1) + block.text
        linecache.cache[str(page)] = (len(source), None, page.read_text().splitlines(keepends=True), str(page))
        exec(compile(source, str(page), "exec"), vars(module))


def test_snippets_are_found() -> None:
    covered = {name_of(page) for page in PAGES_WITH_SNIPPETS}
    assert "README.md" in covered
    assert {"docs/extending/policies.md", "docs/extending/plugins.md", "docs/usage/wrapper.md"} <= covered
    assert {"docs/extending/adapters.md", "docs/usage/in-place.md", "docs/usage/sites.md"} <= covered
    assert {"docs/extending/sites.md", "docs/extending/signals.md"} <= covered


def test_few_snippets_are_left_out() -> None:
    left_out = [f"{name_of(page)}:{b.line}" for page in PAGES for b in blocks(page) if "notest" in b.words]
    assert len(left_out) <= 4, left_out


def test_blocks_of_the_pages_are_blocks_for_the_renderer() -> None:
    """Where it does not know the words behind the language, it takes the end of the block for the start of one."""
    infos = {
        name_of(page): [match["info"] for match in FENCE.finditer(page.read_text())] for page in DOCS.rglob("*.md")
    }
    assert not {
        page: found for page, all_of in infos.items() if (found := [i for i in all_of if not INFO.fullmatch(i)])
    }


def test_every_block_says_its_language() -> None:
    known = {"python", "console", "text", "toml", "bibtex", "json", "html"}
    odd = [
        f"{name_of(page)}:{b.line} {b.language!r}" for page in PAGES for b in blocks(page) if b.language not in known
    ]
    assert not odd


def test_the_workload_on_the_comparison_page_serves_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text(snippets(DOCS / "usage" / "comparison.md")[0].text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["calibrate", "my_model:workload", "--out", "my-profile.json", "--samples", "2", "--steps", "6"]
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        sys.modules.pop("my_model", None)
    assert result.exit_code == 0, result.output
    assert load_profile("my-profile.json").num_steps == 6


# -- the API reference ----------------------------------------------------------------------------------------------


def documented() -> set[str]:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize(
    "package",
    [
        "cachepolicies",
        "cachepolicies.contracts",
        "cachepolicies.inplace",
        "cachepolicies.policies",
        "cachepolicies.substitutes",
        "cachepolicies.tolerances",
        "cachepolicies.sites",
        "cachepolicies.adapters",
        "cachepolicies.profiles",
        "cachepolicies.calibration",
        "cachepolicies.planning",
        "cachepolicies.scores",
        "cachepolicies.comparison",
        "cachepolicies.testing",
    ],
)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    known = documented()
    # A name that two packages export stands in the reference once.
    objects = {id(resolve(identifier)) for identifier in known}
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if id(getattr(module, name)) not in objects]
    missing = [name for name in missing if f"{package}.{name}" not in known]
    assert not missing, f"add to docs/api: {', '.join(f'::: {package}.{name}' for name in missing)}"


def test_what_the_reference_names_exists() -> None:
    for identifier in documented():
        assert resolve(identifier) is not None


def resolve(identifier: str) -> object:
    try:
        return importlib.import_module(identifier)
    except ModuleNotFoundError:
        module, _, name = identifier.rpartition(".")
        return getattr(importlib.import_module(module), name)


# -- hooks and plugins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_signature(hook: str) -> None:
    function = getattr(hookspecs, hook)
    page = (DOCS / "extending" / "plugins.md").read_text()
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert f"{hook}({', '.join(inspect.signature(function).parameters)})" in headings
    assert f"::: cachepolicies.hookspecs.{hook}" in (DOCS / "api" / "hookspecs.md").read_text()


def test_no_hook_is_documented_that_does_not_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    packages = {path.name for path in (ROOT / "plugins").glob("*/src/*")}
    named = set(re.findall(r"\bcachepolicies_\w+", text)) - packages
    assert named <= set(HOOKS)


@pytest.fixture
def reloaded_plugins() -> Iterator[None]:
    yield
    load_plugins(refresh=True)


@pytest.mark.usefixtures("reloaded_plugins")
def test_the_plugin_page_describes_a_plugin_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install what the page prints, as pip would, and look the policy up."""
    found = blocks(DOCS / "extending" / "plugins.md")
    (project,) = (block.text for block in found if block.language == "toml")
    module = next(block.text for block in found if block.language == "python")
    entry_point = re.search(r'\[project\.entry-points\.cachepolicies\]\n(\w+) = "(\w+)"', project)
    name = re.search(r'^name = "(.+)"', project, re.MULTILINE)
    assert entry_point is not None
    assert name is not None
    (tmp_path / f"{entry_point[2]}.py").write_text(module)
    info = tmp_path / f"{name[1].replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name[1]}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[cachepolicies]\n{entry_point[1]} = {entry_point[2]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, entry_point[2], raising=False)
    loaded = load_plugins(refresh=True)
    assert not [failure.message for failure in loaded.failures if failure.source.distribution == name[1]]
    mine = [entry.name for entry in loaded.policies.entries() if entry.distribution == name[1]]
    assert mine == ["second-half"]
    assert loaded.policies.create("second-half:every=3") is not None
    monkeypatch.delitem(sys.modules, entry_point[2], raising=False)


# -- commands, targets, links ---------------------------------------------------------------------------------------

COMMAND = re.compile(r"^cachepolicies((?: [a-z][a-z-]*\b)*)(.*)$")


def commands_mentioned() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield page and line, the words of a command, and its options."""
    for page in PAGES:
        lines = [line for b in blocks(page) if b.language == "console" for line in b.text.splitlines()]
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        prose = FENCE.sub("", page.read_text())
        lines += re.findall(r"`((?:[A-Z_]+=\S+ )?cachepolicies [a-z][^`]*)`", prose)
        for line in lines:
            command = COMMAND.match(re.sub(r"^[A-Z_]+=\S+ ", "", line).split("#")[0].strip())
            if command is not None:
                yield f"{name_of(page)}: {line}", command[1].split(), re.findall(r"(?<!\S)--[a-z-]+", command[2])


def test_every_command_mentioned_exists() -> None:
    mentioned = list(commands_mentioned())
    assert mentioned
    problems = []
    for where, words, options in mentioned:
        command = typer.main.get_command(app)
        for word in words:
            children = getattr(command, "commands", None)
            if children is None:
                break  # the rest are arguments
            if word not in children:
                problems.append(f"{where}: no command {word!r}")
                break
            command = children[word]
        else:
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            problems += [f"{where}: no option {option}" for option in options if option not in known | {"--help"}]
    assert not problems, "\n".join(problems)


def test_every_command_is_documented() -> None:
    mentioned = {word for _, words, _ in commands_mentioned() for word in words}
    assert set(getattr(typer.main.get_command(app), "commands")) <= mentioned  # noqa: B009


def test_every_make_target_mentioned_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    mentioned = {t for page in PAGES for t in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())}
    assert mentioned <= targets
    assert {"demo", "test", "lint", "docs", "bench", "train", "clean"} <= targets
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert targets == set(phony[1].split())  # demo/, docs/ and bench/ are folders too


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    broken = [link for link in links if link and not (page.parent / link).exists()]
    assert not broken


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{cachepolicies.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_built_in_name_is_described() -> None:
    """Each adapter, policy, substitute and so on of our own is in the page about its kind."""
    loaded = load_plugins()
    pages: list[tuple[str, Registry[Any]]] = [
        ("usage/models.md", loaded.adapters),
        ("usage/policies.md", loaded.policies),
        ("usage/policies.md", loaded.scores),
        ("usage/sites.md", loaded.sites),
        ("extending/substitutes.md", loaded.substitutes),
        ("extending/tolerances.md", loaded.tolerances),
        ("usage/schedulers.md", loaded.schedulers),
    ]
    for page, registry in pages:
        text = (DOCS / page).read_text()
        own = [entry.name for entry in registry.entries() if entry.distribution == "cachepolicies"]
        assert own
        assert not [name for name in own if f"`{name}`" not in text], page


# -- the table of models --------------------------------------------------------------------------------------------

SERVED = {
    "Wan, text and image to video": "WanTransformer3DModel",
    "Wan VACE": "WanVACETransformer3DModel",
    "LTX": "LTXVideoTransformer3DModel",
    "LTX-2": "LTX2VideoTransformer3DModel",
    "CogVideoX 1.0 and 1.5": "CogVideoXTransformer3DModel",
    "HunyuanVideo": "HunyuanVideoTransformer3DModel",
    "HunyuanVideo 1.5": "HunyuanVideo15Transformer3DModel",
    "Mochi": "MochiTransformer3DModel",
    "Cosmos": "CosmosTransformer3DModel",
    "FLUX.1": "FluxTransformer2DModel",
    "FLUX.2": "Flux2Transformer2DModel",
    "Qwen-Image": "QwenImageTransformer2DModel",
    "SD3": "SD3Transformer2DModel",
    "PixArt": "PixArtTransformer2DModel",
    "Sana": "SanaTransformer2DModel",
    "DiT": "DiTTransformer2DModel",
    "Lumina2": "Lumina2Transformer2DModel",
    "HiDream": "HiDreamImageTransformer2DModel",
    "AuraFlow": "AuraFlowTransformer2DModel",
    "Chroma": "ChromaTransformer2DModel",
    "Z-Image": "ZImageTransformer2DModel",
    "Stable Audio": "StableAudioDiTModel",
}
"""What the library promises to serve, and the class it is by."""

MODELS = DOCS / "usage" / "models.md"


@pytest.fixture(scope="module")
def table() -> str:
    return generated()


def test_the_table_of_models_is_up_to_date(table: str) -> None:
    page = MODELS.read_text()
    on_page = BEGIN + page.partition(BEGIN)[2].partition(END)[0] + END
    assert on_page == table, "run: python tests/adapter_table.py --write docs/usage/models.md"


@pytest.mark.parametrize("model", SERVED.values(), ids=SERVED)
def test_every_promised_model_has_its_rows_and_a_tested_status(table: str, model: str) -> None:
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(f"| `{model}` |")]
    assert len(rows) == 2, "one row for use, one for structure"
    assert rows[0][3].startswith("yes"), "not tested on a tiny model"


def test_models_with_two_configurations_are_tested_in_both(table: str) -> None:
    for model, further in (("WanTransformer3DModel", "i2v"), ("CogVideoXTransformer3DModel", "1.5")):
        (row, _) = (line for line in table.splitlines() if line.startswith(f"| `{model}` |"))
        assert f"`{further}`" in row


def test_a_page_without_the_marks_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="once each"):
        replaced("# Models\n")
    with pytest.raises(ValueError, match="once each"):
        replaced(f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n")
