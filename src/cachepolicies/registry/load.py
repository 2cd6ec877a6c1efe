"""Builds the plugin manager, loads the plugins one by one, and keeps the registries they filled."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import evolve, fields, frozen

from cachepolicies import hookspecs
from cachepolicies.base.errors import CacheWarning, PluginError
from cachepolicies.registry.registry import Entry, Registry, Source, make_entry

if TYPE_CHECKING:
    from cachepolicies.contracts.adapter import Adapter
    from cachepolicies.contracts.policy import PolicySettings
    from cachepolicies.contracts.scheduler import Scheduler
    from cachepolicies.contracts.score import ScoreSettings
    from cachepolicies.contracts.signal import Signal
    from cachepolicies.contracts.site import Site
    from cachepolicies.contracts.substitute import Substitute
    from cachepolicies.contracts.tolerance import ToleranceSchedule

TRACE_VARIABLE = "CACHEPOLICIES_TRACE_PLUGINS"
BLOCK_VARIABLE = "CACHEPOLICIES_BLOCK_PLUGINS"

BUILTIN = "cachepolicies.builtin.plugin"
"""The module of the built-in plugin; by name, because what it lists stands above the registries."""

_HOOKS = {
    "adapter": "cachepolicies_register_adapters",
    "policy": "cachepolicies_register_policies",
    "scheduler": "cachepolicies_register_schedulers",
    "score": "cachepolicies_register_scores",
    "signal": "cachepolicies_register_signals",
    "site": "cachepolicies_register_sites",
    "substitute": "cachepolicies_register_substitutes",
    "tolerance schedule": "cachepolicies_register_tolerances",
}


@frozen
class PluginFailure:
    """A plugin that was left out.

    Attributes:
        source: its distribution and entry point.
        cause: the exception that its import, its hooks or its registrations raised.
    """

    source: Source
    cause: BaseException

    @property
    def message(self) -> str:
        """Distribution, entry point and cause, in one line."""
        cause = " ".join(str(self.cause).split())
        return f"the plugin of {self.source} could not be loaded: {type(self.cause).__name__}: {cause}"


@frozen
class Plugins:
    """What loading the plugins gave.

    Attributes:
        adapters: names of model classes to adapters.
        policies: names to policies.
        schedulers: names to schedulers.
        scores: names to scores.
        signals: names to signals.
        sites: names to sites.
        substitutes: names to substitutes.
        tolerances: names to tolerance schedules, or to functions of t.
        failures: the plugins that were left out, in the order of loading.
    """

    adapters: Registry[Adapter]
    policies: Registry[PolicySettings]
    schedulers: Registry[Scheduler]
    scores: Registry[ScoreSettings]
    signals: Registry[Signal]
    sites: Registry[Site]
    substitutes: Registry[Substitute]
    tolerances: Registry[ToleranceSchedule | Callable[[float], float]]
    failures: tuple[PluginFailure, ...]

    def registries(self) -> tuple[Registry[Any], ...]:
        """Return the registries, in the order above."""
        return tuple(getattr(self, each.name) for each in fields(Plugins) if each.name != "failures")


_lock = threading.RLock()
_loading = False
_loaded: Plugins | None = None
_extra: tuple[tuple[object, Source], ...] = ()
"""Plugins that `registered` has put beside those that are installed."""


def load_plugins(*, refresh: bool = False) -> Plugins:
    """Return the registries, filled by the built-ins and by every installed plugin.

    The first call in a process loads, later ones return the same object. Plugins are loaded in the order of their
    distribution's name, after the built-ins, so which of two equal names comes first does not depend on the path. A
    plugin that fails is left out as a whole, listed in ``failures`` and reported once as a `CacheWarning`.
    ``CACHEPOLICIES_BLOCK_PLUGINS`` (comma-separated names of distributions or entry points) leaves plugins out without
    importing them, ``CACHEPOLICIES_TRACE_PLUGINS=1`` prints to stderr what happens.

    Args:
        refresh: load again, for example after a package was installed or the environment changed.

    Raises:
        PluginError: called from within a plugin that is being loaded.
    """
    global _loaded, _loading
    with _lock:
        if _loading:
            raise PluginError("the plugins are being loaded; a plugin must not look up names while it is imported")
        if _loaded is not None and not refresh:
            return _loaded
        _loading = True
        try:
            # Kept before anything is reported: with warnings as errors, only the first call raises.
            _loaded = loaded = _load()
        finally:
            _loading = False
    for failure in loaded.failures:
        warnings.warn(
            f"{failure.message}. Everything else works; {TRACE_VARIABLE}=1 shows the traceback, "
            f"{BLOCK_VARIABLE}={failure.source.distribution} leaves the plugin out.",
            CacheWarning,
            stacklevel=2,
        )
    return loaded


@contextmanager
def registered(plugin: object, distribution: str = "registered") -> Iterator[Plugins]:
    """Have the names of a plugin registered for the length of the context, as if its package were installed.

    For the tests of a plugin; it is the same for the whole process. A plugin whose distribution is installed is
    registered already, and nothing is done.

    Args:
        plugin: a module or object with hooks.
        distribution: the name of its distribution; messages name it as the source.

    Raises:
        PluginError: it implements no hook, or a name is taken.
    """
    global _loaded, _extra
    loaded = load_plugins()
    if any(
        entry.source.distribution == distribution for registry in loaded.registries() for entry in registry.entries()
    ):
        yield loaded
        return
    with _lock:
        before, extra = _loaded, _extra
        _extra = (*extra, (plugin, Source(distribution, "0")))
        _loaded = _load(*_extra)
    try:
        yield load_plugins()
    finally:
        with _lock:
            _loaded, _extra = before, extra


def adapters() -> Registry[Adapter]:
    """Return the registry of adapters; see `load_plugins`."""
    return load_plugins().adapters


def policies() -> Registry[PolicySettings]:
    """Return the registry of policies; see `load_plugins`."""
    return load_plugins().policies


def schedulers() -> Registry[Scheduler]:
    """Return the registry of schedulers; see `load_plugins`."""
    return load_plugins().schedulers


def scores() -> Registry[ScoreSettings]:
    """Return the registry of scores; see `load_plugins`."""
    return load_plugins().scores


def signals() -> Registry[Signal]:
    """Return the registry of signals; see `load_plugins`."""
    return load_plugins().signals


def sites() -> Registry[Site]:
    """Return the registry of sites; see `load_plugins`."""
    return load_plugins().sites


def substitutes() -> Registry[Substitute]:
    """Return the registry of substitutes; see `load_plugins`."""
    return load_plugins().substitutes


def tolerances() -> Registry[ToleranceSchedule | Callable[[float], float]]:
    """Return the registry of tolerance schedules; see `load_plugins`."""
    return load_plugins().tolerances


def _load(*further: tuple[object, Source]) -> Plugins:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registries: dict[str, Registry[Any]] = {kind: Registry(kind) for kind in _HOOKS}
    # A failure of the built-ins is a defect of ours and propagates.
    registries = _add(manager, registries, importlib.import_module(BUILTIN), _own_source())
    failures: list[PluginFailure] = []
    for source, load in _entry_points():
        try:
            registries = _add(manager, registries, load(), source)
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises must not stop the others
            failures.append(PluginFailure(source, error))
            _trace(f"{source} failed", error)
    for plugin, source in further:
        registries = _add(manager, registries, plugin, source)
    failed = tuple(dict.fromkeys(failure.source.distribution for failure in failures))
    complete = {kind: evolve(registry, failed=failed) for kind, registry in registries.items()}
    return Plugins(
        complete["adapter"],
        complete["policy"],
        complete["scheduler"],
        complete["score"],
        complete["signal"],
        complete["site"],
        complete["substitute"],
        complete["tolerance schedule"],
        tuple(failures),
    )


def _add(
    manager: pluggy.PluginManager, registries: dict[str, Registry[Any]], plugin: object, source: Source
) -> dict[str, Registry[Any]]:
    """Return the registries with what ``plugin`` registers; on an error the manager is left without the plugin."""
    try:
        manager.register(plugin, name=f"{source.distribution}: {source.entry_point}")
        # With the plugins before it checked, whatever is pending belongs to this one.
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise PluginError(
                f"{plugin!r} implements no hook; mark its functions with cachepolicies.hookspecs.hookimpl and name "
                f"them {', '.join(_HOOKS.values())}"
            )
        others = [other for other in manager.get_plugins() if other is not plugin]
        added = {}
        for kind, hook in _HOOKS.items():
            entries, register = _recorder(kind, source)
            manager.subset_hook_caller(hook, remove_plugins=others)(register=register)
            added[kind] = registries[kind].extended(entries)
            for entry in entries:
                _trace(f"{source} registered {kind} {entry.name!r}")
    except BaseException:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise
    return added


def _recorder(kind: str, source: Source) -> tuple[list[Entry[Any]], hookspecs.Register]:
    entries: list[Entry[Any]] = []

    def register(name: str, factory: Callable[..., Any], summary: str = "") -> None:
        entries.append(make_entry(kind, name, factory, summary, source))

    return entries, register


def _entry_points() -> Iterable[tuple[Source, Callable[[], object]]]:
    """Yield the plugins that are not blocked, in a fixed order, with the function that imports each."""
    importlib.invalidate_caches()
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    found = []
    for entry_point in importlib.metadata.entry_points(group=hookspecs.PROJECT):
        distribution = entry_point.dist
        name, version = (distribution.name, distribution.version) if distribution else ("(unknown)", "")
        found.append((Source(name, version, f"{entry_point.name} = {entry_point.value}"), entry_point))
    for source, entry_point in sorted(found, key=lambda pair: (pair[0].distribution.lower(), pair[1].name)):
        if blocked & {source.distribution, entry_point.name}:
            _trace(f"{source} is blocked by {BLOCK_VARIABLE}")
            continue
        _trace(f"{source} is loaded")
        yield source, entry_point.load


def _own_source() -> Source:
    return Source("cachepolicies", importlib.metadata.version("cachepolicies"))


def _trace(text: str, error: BaseException | None = None) -> None:
    if os.environ.get(TRACE_VARIABLE, "") in ("", "0"):
        return
    print(f"cachepolicies plugins: {text}", file=sys.stderr)
    if error is not None:
        print("".join(traceback.format_exception(error)), file=sys.stderr, end="")
