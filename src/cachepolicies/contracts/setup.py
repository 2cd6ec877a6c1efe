"""What is known when a denoiser is set up: what everything that has settings is resolved with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import evolve, field, frozen

from cachepolicies.base.errors import NeedsError

if TYPE_CHECKING:
    from torch import nn

    from cachepolicies.contracts.adapter import Adapter
    from cachepolicies.contracts.scheduler import Scheduler
    from cachepolicies.contracts.site import ResolvedSite
    from cachepolicies.contracts.substitute import Substitute
    from cachepolicies.profiles.schema import Profile

_Found: TypeAlias = "Scheduler | Callable[[], Scheduler | None] | None"


@frozen(eq=False)
class Setup:
    """What is known when a denoiser is set up.

    Settings are what the user wrote and never change; ``resolve(setup)`` turns them into another object, which works.
    They are resolved in this order, and each sees those before it: site, substitute, policy (with its score and its
    tolerance schedule).

    Attributes:
        profile: what calibration measured or the authors published, or ``None`` if none was given.
        model: the denoiser as it was given, or ``None`` where there is none (planning, say).
        network: the module inside the denoiser, or ``None`` where there is no telling.
        adapter: what is known of the network's class, or ``None`` if nothing is.
    """

    profile: Profile | None = None
    _substitute: Substitute | None = field(default=None, alias="substitute")
    # A function is asked when somebody wants to know: rebuilding a scheduler may import diffusers.
    _scheduler: _Found = field(default=None, alias="scheduler", repr=False)
    model: Callable[..., Any] | None = field(default=None, repr=False)
    network: nn.Module | None = field(default=None, repr=False)
    adapter: Adapter | None = None
    _site: ResolvedSite | None = field(default=None, alias="site")

    @property
    def scheduler(self) -> Scheduler | None:
        """The one that was given, or the pipeline's; else rebuilt from the profile's record; else ``None``.

        Raises:
            SettingsError: the profile's scheduler is registered and does not take the recorded settings.
        """
        return self._scheduler() if callable(self._scheduler) else self._scheduler

    @property
    def substitute(self) -> Substitute:
        """What stands in for a skipped evaluation, resolved.

        Raises:
            NeedsError: it is not resolved yet.
        """
        if self._substitute is None:
            raise NeedsError("this set-up has no substitute yet: it is resolved before the policy")
        return self._substitute

    @property
    def site(self) -> ResolvedSite | None:
        """Where the evaluation is cut, resolved; ``None`` before, and where there is no model."""
        return self._site

    def network_for(self, site: str) -> nn.Module:
        """Return the module inside the denoiser, for a site that is inside it.

        Args:
            site: its name, for the message.

        Raises:
            NeedsError: there is none, or no telling which.
        """
        if self.network is None:
            raise NeedsError(
                f"site {site!r} is inside the network, and {type(self.model).__name__} is no torch.nn.Module. A "
                "wrapper names the module it calls by an attribute `network`; any callable can be cut at site='output'"
            )
        return self.network

    def with_parts(self, **parts: Any) -> Setup:
        """Return the set-up with some parts replaced, by the names of its attributes."""
        return evolve(self, **parts)
