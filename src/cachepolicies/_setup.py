"""What is known when a denoiser is set up, for the policies whose settings depend on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

if TYPE_CHECKING:
    from cachepolicies._substitute import Substitute
    from cachepolicies.profiles.schema import Profile
    from cachepolicies.schedulers.base import Scheduler

_Found: TypeAlias = "Scheduler | Callable[[], Scheduler | None] | None"


@frozen(eq=False)
class Setup:
    """What is known when a denoiser is set up.

    Attributes:
        profile: what calibration measured, or ``None`` if none was given.
        substitute: what stands in for a skipped evaluation, with its time resolved.
    """

    profile: Profile | None
    substitute: Substitute
    # A function is asked when somebody wants to know: rebuilding a scheduler may import diffusers.
    _scheduler: _Found = field(default=None, alias="scheduler", repr=False)

    @property
    def scheduler(self) -> Scheduler | None:
        """The one that was given, or the pipeline's; else rebuilt from the profile's record; else ``None``.

        Raises:
            SettingsError: the profile's scheduler is registered and does not take the recorded settings.
        """
        return self._scheduler() if callable(self._scheduler) else self._scheduler
