"""The contract of a site: *where* is an evaluation cut?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cachepolicies.contracts.declared import Contract

if TYPE_CHECKING:
    from torch import nn

    from cachepolicies.contracts.setup import Setup
    from cachepolicies.engine.engine import ServedCall
    from cachepolicies.engine.invocation import Invocation


class Site(Contract, declares=True):
    """What a user names a site by: frozen settings, resolved on a model.

    A site registers through the hook ``cachepolicies_register_sites``. One that cuts at the outputs of some modules
    returns a `cachepolicies.sites.ModulesSite` and needs to know nothing of how a call is served.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, shown in traces and errors; a class attribute."""

    @abstractmethod
    def resolve(self, setup: Setup) -> ResolvedSite:
        """Return the site on a model; called once, at set-up.

        Args:
            setup: model, network, adapter, profile and substitute.

        Raises:
            NeedsError: the site is inside a network, and there is none, or none that is known.
            SettingsError: the network has no such place.
        """


class ResolvedSite(Contract, declares=True):
    """A site on a model: serves a call through the engine. What is evaluated, remembered and substituted flows here.

    It may be used by several threads at once; what belongs to a call or a run is kept with these.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What the user wrote: ``"output"``, ``"blocks"``, a registered name or a module's path."""

    @property
    def places(self) -> tuple[str, ...]:
        """The places of a call, each with a memory of its own; one, of the empty name, unless it says otherwise."""
        return ("",)

    @property
    def kinds(self) -> Mapping[str, str]:
        """The kind of module at each place, ``"mlp"`` or ``"cross_attention"`` say, as far as the site says; none.

        A policy that treats kinds differently looks them up when it is resolved.
        """
        return {}

    @property
    def parts_rows(self) -> bool:
        """Whether it can evaluate some rows of a batch without the others; not where it has several places.

        Where it cannot, the samples of a batch decide as one, and the trace says so.
        """
        return len(self.places) == 1

    @property
    def replaces_evaluations(self) -> bool:
        """Whether the caller gets what the engine answers also where it evaluated, so that it may be corrected.

        By default not: a forward under way goes on with what its modules returned.
        """
        return False

    @property
    def remembers_residuals(self) -> bool:
        """Whether what is remembered is what leaves its place minus what entered; not by default.

        A substitute that itself adds what enters is refused there.
        """
        return False

    @property
    def signals(self) -> frozenset[str]:
        """Names of the signals that this site can supply; none by default."""
        return frozenset()

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """For each place a module that runs exactly when the place is evaluated; none where that is the denoiser.

        So that evaluations can be counted without the trace.
        """
        return {}

    @property
    def shares(self) -> Mapping[str, float]:
        """The part of a call's uncached work that a reuse of each place skips, by FLOPs, as far as it is known.

        The same mapping every time; a site inside a network measures on the first call that is evaluated.
        """
        return {}

    @abstractmethod
    def serve(self, served: ServedCall, invocation: Invocation) -> Any:
        """Serve one call.

        Args:
            served: decides, remembers and records, at every place that the forward reaches.
            invocation: runs the denoiser.

        Returns:
            What the denoiser returns, of its own type.

        Raises:
            InputError, RunError, NeedsError, PolicyError: see their messages. After any exception nothing of the run is
                remembered.
        """
