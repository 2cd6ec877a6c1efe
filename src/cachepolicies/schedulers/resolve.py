"""From what a caller gives as a scheduler to a `Scheduler`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cachepolicies.base.errors import PluginError, SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.contracts.scheduler import Scheduler

if TYPE_CHECKING:
    from cachepolicies.profiles.schema import SchedulerInfo


def as_scheduler(spec: object) -> Scheduler:
    """Return the scheduler that ``spec`` stands for.

    Args:
        spec: a `Scheduler`; a registered name or spec string such as ``"flow-euler:shift=3"``; or a diffusers
            scheduler, as an instance or as a class for its default settings.

    Returns:
        The scheduler itself, a new one, or a `DiffusersScheduler` around a copy of the settings.

    Raises:
        UnknownNameError: no scheduler is registered under the name.
        SettingsError: a setting is wrong, the diffusers class is not supported, or ``spec`` is nothing of the kind.
        PluginError: what is registered under the name is not a `Scheduler`.
    """
    if isinstance(spec, Scheduler):
        return spec
    if isinstance(spec, str):
        # Not at the top: the registry's built-in entries are these modules themselves.
        from cachepolicies.registry.load import schedulers

        created: object = schedulers().create(spec)
        if not isinstance(created, Scheduler):
            raise PluginError(f"scheduler {spec!r} made a {type(created).__name__}, not a cachepolicies Scheduler")
        return created
    if isinstance(spec, type) and issubclass(spec, Scheduler):
        raise SettingsError(f"scheduler is the class {spec.__name__}; give an instance: {spec.__name__}(...)")
    if hasattr(spec, "set_timesteps"):
        from cachepolicies.schedulers.from_diffusers import DiffusersScheduler

        return DiffusersScheduler(spec)
    raise SettingsError(
        f"scheduler is {shown(spec)} ({type(spec).__name__}); give a name such as 'flow-euler:shift=3', a "
        "cachepolicies Scheduler, or a diffusers scheduler (instance or class)"
    )


def scheduler_of(info: SchedulerInfo) -> Scheduler | None:
    """Rebuild the scheduler that a profile was calibrated with, from its name and its settings.

    What diffusers' ``set_shift`` changed after construction is recorded as if the scheduler had been made with it,
    which shifts the last noise levels once more: compare the timesteps where they matter.

    Args:
        info: a profile's record.

    Returns:
        The scheduler; ``None`` if none is registered under the name, as with a scheduler of one's own.

    Raises:
        SettingsError: the registered scheduler does not take the recorded settings, as after an update of diffusers.
        PluginError: what is registered under the name is not a `Scheduler`, or cannot be imported.
    """
    from cachepolicies.registry.load import schedulers

    registry = schedulers()
    if info.name not in registry:
        return None
    try:
        created: object = registry.create(info.name, **{key: _read_number(value) for key, value in info.config.items()})
    except SettingsError as error:
        raise SettingsError(
            f"the profile's scheduler {info.name!r} cannot be rebuilt from its recorded settings: {error}; "
            "give the scheduler itself, or calibrate again"
        ) from error
    if not isinstance(created, Scheduler):
        raise PluginError(f"scheduler {info.name!r} made a {type(created).__name__}, not a cachepolicies Scheduler")
    return created


def _read_number(value: Any) -> Any:
    """Return the infinite number that a text stands for: JSON has none, so that a record holds them as text."""
    return float(value) if value in (str(math.inf), str(-math.inf)) else value
