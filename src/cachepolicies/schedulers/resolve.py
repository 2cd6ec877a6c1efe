"""From what a caller gives as a scheduler to a `Scheduler`."""

from __future__ import annotations

from cachepolicies._errors import PluginError, SettingsError
from cachepolicies._settings import shown
from cachepolicies.schedulers.base import Scheduler


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
        from cachepolicies._plugins import schedulers

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
