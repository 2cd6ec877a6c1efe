"""What the source of a module says that its signature does not: what it returns, and what it keeps for later calls."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from typing import Any

from torch import nn

_MEMORY = re.compile(r"(^|_)(kv|past|memory|(k|v|keys?|values?)_cache|cache_(k|v|keys?|values?))(_|$)")
"""Names of attributes and arguments in which attention keeps keys and values from one call for later ones."""


@functools.cache
def is_memory(name: str) -> bool:
    """Return whether an argument or attribute is, by its name, a memory of keys and values."""
    return _MEMORY.search(name) is not None


def returns_tuple(kind: type[nn.Module]) -> bool:
    """Return whether a class's ``forward`` hands on a tuple; ``False`` where its source is not there."""
    return any(isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) for node in _forward(kind))


def memory_of(network: nn.Module) -> str | None:
    """Return where a network keeps keys and values from one call for later ones, ``None`` where none is seen.

    Seen are assignments to an attribute of such a name, and writing into it, in a ``forward``.

    Returns:
        ``"Attention.k_cache"``, say.
    """
    kinds: list[Any] = list(dict.fromkeys(type(module) for module in network.modules()))
    for kind in kinds:
        found = _written_memory(kind)
        if found is not None:
            return f"{kind.__name__}.{found}"
    return None


@functools.lru_cache(maxsize=4096)
def _written_memory(kind: Any) -> str | None:
    for node in _forward(kind):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _changes(node.func.attr):
            targets = [node.func.value]
        for target in targets:
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute) and _is_self(target.value) and is_memory(target.attr):
                return target.attr
    return None


def _changes(method: str) -> bool:
    return method.endswith("_") or method in ("append", "update", "extend", "insert")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _forward(kind: Any) -> tuple[ast.AST, ...]:
    """Return the nodes of a class's forward, without those of functions inside of it; none where there is no source."""
    forward = inspect.getattr_static(kind, "forward", None)
    if not inspect.isfunction(forward):  # one of TorchScript's, say
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):  # compiled, made at run time, or a lambda on a line of its own
        return ()
    function = tree.body[0]
    if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return ()
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        found.append(node)
        waiting += ast.iter_child_nodes(node)
    return tuple(found)
