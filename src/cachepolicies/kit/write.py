"""Writing a package from templates: entry point, one documented class, tests by `cachepolicies.testing`, README."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from attrs import frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.registry.load import load_plugins
from cachepolicies.registry.registry import Registry

KINDS: Mapping[str, str] = {
    "policy": "policies",
    "substitute": "substitutes",
    "site": "sites",
    "adapter": "adapters",
    "scheduler": "schedulers",
    "tolerance": "tolerances",
}
"""What can be written, and the name of its registry; ``cachepolicies_register_<registry>`` is its hook."""

_LISTED = {"tolerances": "schedules"}
"""Registries that the command line lists by another name."""

_NEW_WORD = re.compile(r"(?<=[a-z0-9A-Z])(?=[A-Z][a-z])")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_LONGEST = 60
_TAKEN = ("plugin", "none", "true", "false")


@frozen
class Names:
    """What the things in a package are called.

    Attributes:
        registered: by users: ``"every-third"``; of an adapter the model class.
        words: that every other name is made of.
        kind: see `KINDS`.
    """

    registered: str
    words: tuple[str, ...]
    kind: str

    @classmethod
    def of(cls, name: str, kind: str) -> Names:
        """Return them.

        Raises:
            SettingsError: the name cannot be that of such a thing.
        """
        wanted = _CLASS if kind == "adapter" else _NAME
        if len(name) > _LONGEST or not wanted.fullmatch(name):
            how = (
                "an adapter is named by the class of its model, NovaTransformer2DModel say"
                if kind == "adapter"
                else "give small letters and digits, words joined by '-': every-third"
            )
            raise SettingsError(f"name is {shown(name)}; {how} (at most {_LONGEST} characters)")
        if keyword.iskeyword(name) or name in _TAKEN:
            raise SettingsError(f"name is {shown(name)}; no module and no class of Python can be called so")
        words = _NEW_WORD.split(name) if kind == "adapter" else name.split("-")
        return cls(name, tuple(word.lower() for word in words), kind)

    @property
    def distribution(self) -> str:
        """Of the package, as pip calls it."""
        return "cachepolicies-" + "-".join(self.words)

    @property
    def package(self) -> str:
        """That is imported."""
        return "cachepolicies_" + self.module

    @property
    def module(self) -> str:
        """That has the class."""
        return "_".join(self.words)

    @property
    def made_by(self) -> str:
        """The class, or of an adapter the function."""
        if self.kind == "adapter":
            return self.module
        return "".join(word.capitalize() for word in self.words)

    def filled(self) -> dict[str, str]:
        """Return what stands in the templates."""
        registry = KINDS[self.kind]
        return {
            "name": self.registered,
            "distribution": self.distribution,
            "package": self.package,
            "module": self.module,
            "made": self.made_by,
            "kind": self.kind,
            "a_kind": ("an " if self.kind[0] in "aeiou" else "a ") + self.kind,
            "registry": registry,
            "listed": _LISTED.get(registry, registry),
        }


def write_package(name: str, kind: str, into: Path) -> Path:
    """Write a package that can be installed, tested and used as it is, to start from.

    Args:
        name: of the thing; of an adapter the class of its model.
        kind: one of `KINDS`.
        into: folder that the package's own folder is made in.

    Returns:
        The package's folder.

    Raises:
        SettingsError: the kind or the name is none, the name is taken, or the folder is there already or cannot be
            made.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind is {shown(kind)}; it is one of {', '.join(KINDS)}")
    names = Names.of(name, kind)
    registry: Registry[object] = getattr(load_plugins(), KINDS[kind])
    if name in registry:
        owner = registry.get(name).distribution
        raise SettingsError(f"{kind} {name!r} is there already, registered by {owner}; choose another name")
    folder = into / names.distribution
    filled = names.filled()
    texts = {
        Path("pyproject.toml"): "pyproject",
        Path("README.md"): "readme",
        Path("src", names.package, "__init__.py"): "init",
        Path("src", names.package, "plugin.py"): "plugin",
        Path("src", names.package, f"{names.module}.py"): kind,
        Path("tests", f"test_{names.module}.py"): f"test_{kind}",
    }
    try:
        folder.mkdir(parents=True)
        for path, template in texts.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_template(template).substitute(filled), encoding="utf-8")
        (folder / "src" / names.package / "py.typed").touch()
    except FileExistsError as error:
        raise SettingsError(f"{folder} is there already; move it, or write into another folder") from error
    except OSError as error:
        raise SettingsError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _template(name: str) -> Template:
    text = (files("cachepolicies.kit") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    return Template(text)
