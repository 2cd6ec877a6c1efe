"""Registries: names to factories, refusing duplicates and explaining unknown names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from attrs import evolve, field, frozen

from cachepolicies.base.errors import PluginError, SettingsError, UnknownNameError, nearest_match_hint
from cachepolicies.base.lazy import imported
from cachepolicies.base.settings import build, shown
from cachepolicies.base.specs import NAME_PATTERN, parse_spec

T = TypeVar("T")


@frozen
class Source:
    """Where a registration comes from.

    Attributes:
        distribution: name of the installed distribution.
        version: its version.
        entry_point: the line of its metadata that names the plugin, ``"name = module"``; empty for the built-ins.
    """

    distribution: str
    version: str
    entry_point: str = ""

    def __str__(self) -> str:
        where = f" (entry point {self.entry_point!r})" if self.entry_point else ""
        return f"distribution {self.distribution!r} {self.version}{where}"


@frozen
class Entry(Generic[T]):
    """One registered name.

    Attributes:
        name: what the user writes.
        factory: ``factory(**settings)`` returns the object.
        source: the distribution that registered it, and the entry point.
        summary: one line.
    """

    name: str
    factory: Callable[..., T]
    source: Source
    summary: str = ""

    @property
    def distribution(self) -> str:
        """Name of the distribution that registered it."""
        return self.source.distribution

    @property
    def version(self) -> str:
        """Version of the distribution that registered it."""
        return self.source.version


@frozen(eq=False)
class Registry(Generic[T]):
    """The names of one kind of object. Frozen: `extended` returns a new registry.

    Attributes:
        kind: ``"policy"``, ``"tolerance schedule"`` and so on; used in the messages.
        failed: distributions with a plugin that could not be loaded, in case a missing name was theirs.
    """

    kind: str
    _by_name: dict[str, Entry[T]] = field(factory=dict, repr=lambda by_name: repr(sorted(by_name)))
    failed: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(sorted(self._by_name))

    def entries(self) -> tuple[Entry[T], ...]:
        """Return the entries, sorted by name."""
        return tuple(self._by_name[name] for name in self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Entry[T]:
        """Return the entry of ``name``.

        Raises:
            UnknownNameError: it is not registered; the message lists the known names and the nearest one.
        """
        if name in self._by_name:
            return self._by_name[name]
        message = f"unknown {self.kind} {name!r}: {nearest_match_hint(name, self._by_name)}"
        if self.failed:
            message += f" (a plugin could not be loaded from: {', '.join(self.failed)})"
        raise UnknownNameError(message)

    def create(self, spec: str, **settings: Any) -> T:
        """Build the object that a spec describes.

        Args:
            spec: a name, or a name with settings, ``"sencache:epsilon=0.1,max_reuse=3"``.
            settings: further settings by name.

        Returns:
            What the factory returned.

        Raises:
            UnknownNameError: the name is not registered.
            SettingsError: the spec is malformed, or a setting is unknown, missing, of the wrong type or out of range,
                or given both in the spec and by name.
            PluginError: the factory cannot be imported.
        """
        name, written = parse_spec(spec)
        entry = self.get(name)
        subject = f"{self.kind} {name!r}"
        if twice := sorted(set(written) & set(settings)):
            raise SettingsError(
                f"{subject}: {twice[0]!r} is given twice, in the spec {spec!r} and as an argument; keep one"
            )
        made: T = build(imported(entry.factory), {**written, **settings}, subject=subject)
        return made

    def extended(self, entries: Iterable[Entry[T]]) -> Registry[T]:
        """Return a registry with ``entries`` added.

        Raises:
            PluginError: a name is registered already; the message names both distributions.
        """
        by_name = dict(self._by_name)
        for entry in entries:
            if entry.name in by_name:
                raise PluginError(
                    f"the {self.kind} {entry.name!r} of {entry.source} is already registered by "
                    f"{by_name[entry.name].source}; the first one stays, rename the other"
                )
            by_name[entry.name] = entry
        return evolve(self, by_name=by_name)


def make_entry(kind: str, name: str, factory: Callable[..., T], summary: str, source: Source) -> Entry[T]:
    """Check a registration and return its entry.

    Raises:
        PluginError: the name cannot stand in a spec, the factory is not callable, or the summary is not text.
    """
    if not isinstance(name, str) or NAME_PATTERN.fullmatch(name) is None:
        raise PluginError(
            f"the name of a {kind} consists of letters, digits, '-', '_' and '.' and starts with a letter; "
            f"{source} registers {shown(name)}"
        )
    if not callable(factory):
        raise PluginError(f"the factory of {kind} {name!r} of {source} is not callable: {shown(factory)}")
    if not isinstance(summary, str):
        raise PluginError(f"the summary of {kind} {name!r} of {source} is not a string: {shown(summary)}")
    return Entry(name, factory, source, summary or _first_line(factory))


def _first_line(factory: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(imported(factory)) or "").strip().splitlines()
    return lines[0].strip() if lines else ""
