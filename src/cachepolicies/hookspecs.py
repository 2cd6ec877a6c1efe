"""The hooks that a plugin may implement, and the marker to implement them with.

A plugin is a module (or any object) with one or more functions that carry the names below and the `hookimpl` marker.
Its distribution announces it in the entry-point group ``cachepolicies``::

    # pyproject.toml
    [project.entry-points.cachepolicies]
    mine = "my_package.plugin"

    # my_package/plugin.py
    from cachepolicies.hookspecs import Register, hookimpl

    @hookimpl
    def cachepolicies_register_policies(register: Register) -> None:
        register("my-policy", MyPolicy)

The built-in adapters, policies, schedulers, scores, sites, substitutes and tolerance schedules are registered in this
way too. Hooks serve set-up only: they are called once a process, when a name is first looked up, and never while
sampling. A plugin is taken as a whole or not at all: when its import, one of its hooks or one of its names fails, it is
reported as failed and registers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pluggy

from cachepolicies.base.lazy import LazyFactory

PROJECT = "cachepolicies"
"""The name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as the implementation of the hook whose name it has."""


class Register(Protocol):
    """What a hook is given to register its objects with."""

    def __call__(self, name: str, factory: Callable[..., Any], summary: str = "") -> None:
        """Register one name.

        Args:
            name: what users will write: letters, digits, ``-``, ``_`` and ``.``, a letter first.
            factory: ``factory(**settings)`` returns the object; usually its frozen attrs class. The names of the
                settings are checked against its signature before it is called. See `lazy` for expensive imports.
            summary: one line for listings; the first line of the factory's docstring if empty.

        Raises:
            PluginError: the name is malformed or taken, or the factory is not callable.
        """
        ...


def lazy(target: str) -> LazyFactory:
    """Return a factory that is imported when it is first used.

    Args:
        target: ``"package.module:ClassName"``.

    Raises:
        PluginError: the target has another form.
    """
    return LazyFactory(target)


@hookspec
def cachepolicies_register_adapters(register: Register) -> None:
    """Register adapters: where the block stack of a model class is, and what can be seen on the way to it.

    Called once, when the plugins are loaded. Implementations call ``register`` once for every model class and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name of the model class, the factory (``factory()`` returns a
            `cachepolicies.adapters.Adapter`) and a summary. Subclasses are served by their nearest base class.
    """


@hookspec
def cachepolicies_register_policies(register: Register) -> None:
    """Register policies: *when* may an evaluation be skipped?

    Called once, when the plugins are loaded. Implementations call ``register`` once for every policy and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a `cachepolicies.CachePolicy` or its
            settings) and a summary.
    """


@hookspec
def cachepolicies_register_schedulers(register: Register) -> None:
    """Register schedulers: noise schedules together with the sampler that runs on them.

    Called once, when the plugins are loaded. Implementations call ``register`` once for every scheduler and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a
            `cachepolicies.contracts.scheduler.Scheduler`) and a summary.
    """


@hookspec
def cachepolicies_register_scores(register: Register) -> None:
    """Register scores: *how far* will the output have moved since it was last computed?

    Called once, when the plugins are loaded. Implementations call ``register`` once for every score and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a `cachepolicies.ScoreSettings`) and a
            summary.
    """


@hookspec
def cachepolicies_register_signals(register: Register) -> None:
    """Register signals: values about a call that policies and substitutes can name.

    Called once, when the plugins are loaded. Implementations call ``register`` once for every signal and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a `cachepolicies.Signal`) and a summary.
    """


@hookspec
def cachepolicies_register_sites(register: Register) -> None:
    """Register sites: *where* is an evaluation cut?

    Called once, when the plugins are loaded. Implementations call ``register`` once for every site and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a `cachepolicies.Site`) and a summary.
    """


@hookspec
def cachepolicies_register_substitutes(register: Register) -> None:
    """Register substitutes: *what* stands in for a skipped evaluation?

    Called once, when the plugins are loaded. Implementations call ``register`` once for every substitute and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a `cachepolicies.Substitute`) and a
            summary.
    """


@hookspec
def cachepolicies_register_tolerances(register: Register) -> None:
    """Register tolerance schedules: *how far* may the output have moved, at each step of a run?

    Called once, when the plugins are loaded. Implementations call ``register`` once for every schedule and return
    nothing; all of them are called, built-ins first, then by distribution name.

    Args:
        register: takes the name, the factory (``factory(**settings)`` returns a
            `cachepolicies.tolerances.ToleranceSchedule`, or simply a function of t) and a summary.
    """
