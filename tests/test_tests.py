"""What holds for every test: it stands by itself, and no clock decides whether it passes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("tests/*.py"), *ROOT.glob("plugins/*/tests/*.py")])
CLOCK_MODULES = {"time", "timeit"}
CLOCKS = re.compile(r"(perf_counter|monotonic|process_time|thread_time|clock_gettime)(_ns)?|time_ns|elapsed_time|now")


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module or ''}.{name.name}" for name in node.names)


def borrowed(tree: ast.AST) -> list[str]:
    """The test modules, and conftest, among what a file imports."""
    parts = [(module, module.split(".")) for module in imports(tree)]
    return [module for module, names in parts if any(re.fullmatch(r"test_\w+|conftest", name) for name in names)]


def clocks(tree: ast.AST) -> list[str]:
    """The clocks that a file imports or calls."""
    found = [module for module in imports(tree) if module.split(".")[0] in CLOCK_MODULES]
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in calls]
    return found + [name for name in names if CLOCKS.fullmatch(name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_is_imported_and_no_clock_is_read(path):
    """What tests share stands in a module that is not named test_*; times are measured in bench/."""
    tree = ast.parse(path.read_text())
    assert not borrowed(tree)
    assert not clocks(tree)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from test_cost import walk", ["test_cost", "test_cost.walk"]),
        ("def f():\n    import tests.conftest", ["tests.conftest"]),
        ("from tests import test_cost as cost", ["tests.test_cost"]),
        ("from torch._dynamo.testing import CompileCounter\nfrom latest_x import y", []),
    ],
)
def test_a_borrowed_test_is_seen(code, found):
    assert borrowed(ast.parse(code)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import time", ["time"]),
        ("from timeit import repeat", ["timeit", "timeit.repeat"]),
        ("clock.perf_counter_ns() - start", ["perf_counter_ns"]),
        ("datetime.now()", ["now"]),
        ("score.time(t), run.wall_time, now, moved(now)", []),
    ],
)
def test_a_clock_is_seen(code, found):
    assert clocks(ast.parse(code)) == found
