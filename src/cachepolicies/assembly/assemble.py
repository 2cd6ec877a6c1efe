"""Putting together policy, profile, substitute and site: what every way in does before the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from cachepolicies.adapters.find import check_adapter, network_of, registered_adapter
from cachepolicies.base.errors import NeedsError, PolicyError, SettingsError
from cachepolicies.contracts.adapter import Adapter
from cachepolicies.contracts.policy import CachePolicy, PolicySettings
from cachepolicies.contracts.scheduler import Scheduler
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.site import ResolvedSite, Site
from cachepolicies.contracts.step import RunInfo
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.engine.call import EngineSettings
from cachepolicies.engine.choice import Choice
from cachepolicies.engine.engine import Engine
from cachepolicies.policies.limits import Limits, within_limits
from cachepolicies.profiles.load import load_profile
from cachepolicies.profiles.match import check_profile
from cachepolicies.profiles.missing import profile_is_missing
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import policies
from cachepolicies.schedulers.resolve import scheduler_of
from cachepolicies.sites.resolve import resolved_site
from cachepolicies.substitutes.resolve import as_substitute


@frozen(eq=False)
class Assembly:
    """The parts that serve a denoiser.

    Attributes:
        choice: chooses the engine of every run: the control flow with policy, substitute and profile, all resolved.
        site: where the evaluation is cut, resolved.
        setup: what everything was resolved with.
        settings: the policy as the user wrote it.
        substitute: the substitute as the user wrote it.
    """

    choice: Choice
    site: ResolvedSite
    setup: Setup
    settings: PolicySettings
    substitute: Substitute

    @property
    def adapter(self) -> Adapter | None:
        """What is known of the model's class."""
        return self.setup.adapter

    def substitute_on(self, scheduler: Scheduler | None) -> Substitute:
        """Return the substitute as it would be under another scheduler; raises as its ``resolve``."""
        return as_substitute(self.substitute.resolve(evolve(self.setup, scheduler=scheduler)))


@frozen
class Parts:
    """What a user names the parts of a set-up by, the same for every way in.

    Attributes:
        policy: a name, a spec, or an object.
        settings: of the policy, where it is given by name.
        profile: a `Profile`, what `load_profile` takes, or ``None``.
        substitute: a name, a spec, or an object.
        site: a name, a spec, the path of a submodule, or an object.
        adapter: instead of the one registered for the model's class.
        limits: laid around the policy.
    """

    policy: str | PolicySettings
    settings: Mapping[str, Any]
    profile: Profile | str | Path | None
    substitute: str | Substitute
    site: str | Site
    adapter: Adapter | None
    limits: Limits | None


def assemble(
    model: Callable[..., Any],
    parts: Parts,
    *,
    engine_settings: Callable[[Adapter | None], EngineSettings],
    notes: Callable[[RunInfo], Sequence[str]],
    scheduler: Callable[[], Scheduler | None],
    or_of_profile: bool = True,
) -> Assembly:
    """Check, resolve and build everything.

    Args:
        model: the denoiser.
        parts: what the user named.
        engine_settings: given the adapter, returns how the engine treats batches and branches.
        notes: what to note in the trace when a run begins.
        scheduler: returns the scheduler in use, or ``None`` if it is not known; asked only where it is wanted.
        or_of_profile: whether the profile's is taken where it is not known. Not if there is one of another kind.

    Raises:
        UnknownNameError, SettingsError, NeedsError, PolicyError, PluginError, ProfileError: see their messages.
    """
    given = parts.profile
    profile = given if given is None or isinstance(given, Profile) else load_profile(given)
    settings = as_policy(parts.policy, parts.settings)
    named = as_substitute(parts.substitute)
    network = network_of(model)
    adapter = parts.adapter
    if adapter is not None:
        check_adapter(adapter)
    elif network is not None:
        adapter = registered_adapter(network)
    in_use = partial(_scheduler_in_use, scheduler, profile if or_of_profile else None)
    setup = Setup(profile, scheduler=in_use, model=model, network=network, adapter=adapter)
    stand_in = as_substitute(named.resolve(setup))
    setup = setup.with_parts(substitute=stand_in)
    site = resolved_site(parts.site, setup)
    setup = setup.with_parts(site=site)
    policy = resolved_policy(settings, setup)
    if parts.limits is not None:
        policy = within_limits(policy, parts.limits)
    check_needs(policy, stand_in, setup)
    engine = Engine(policy, stand_in, profile, engine_settings(adapter), site.parts_rows, site.shares, notes)
    if profile is not None:
        check_profile(profile, model=model)
    return Assembly(engine, site, setup, settings, named)


def as_policy(policy: str | PolicySettings, settings: Mapping[str, Any]) -> PolicySettings:
    """Return the policy's settings that a name, a spec or an object stands for.

    Raises:
        UnknownNameError: no policy is registered under the name.
        SettingsError: a setting is wrong, or settings are given beside an object.
        PolicyError: what the value stands for is no policy.
    """
    if isinstance(policy, str):
        made: object = policies().create(policy, **settings)
    elif settings:
        raise SettingsError(
            f"settings {', '.join(sorted(settings))} were given beside a policy object; set them on the object, or "
            "give the policy by name"
        )
    else:
        made = policy
    if not isinstance(made, PolicySettings):
        raise PolicyError(
            f"policy {made!r} does not derive from cachepolicies.CachePolicy, the contract of a policy (or from "
            "cachepolicies.PolicySettings, where resolving its settings makes one)"
        )
    return made


def resolved_policy(settings: PolicySettings, setup: Setup) -> CachePolicy:
    """Return the policy that works in a set-up; raises as its ``resolve``.

    Raises:
        PolicyError: it resolved to something else.
    """
    made: object = settings.resolve(setup)
    if not isinstance(made, CachePolicy):
        raise PolicyError(f"policy {settings.name!r} resolved to {made!r}, which does not derive from CachePolicy")
    return made


def check_needs(policy: CachePolicy, substitute: Substitute, setup: Setup) -> None:
    """Check that everything that policy and substitute declare is provided.

    Raises:
        NeedsError: a signal, a profile, or something in the profile is missing; or the site cannot correct.
    """
    needs, site = policy.needs, setup.site
    for user, signals in (
        (f"policy {policy.name!r}", needs.signals),
        (f"substitute {substitute.name!r}", substitute.signals),
    ):
        missing = sorted(signals - (frozenset() if site is None else site.signals))
        if site is not None and missing:
            kind = type(setup.model if setup.network is None else setup.network).__name__
            can = ", ".join(sorted(site.signals)) or "none"
            raise NeedsError(
                f"{user} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)} from inside the "
                f"model, which site {site.name!r} of {kind} cannot supply (it supplies: {can}); "
                + (
                    "use site='blocks'"
                    if site.name == "output"
                    else "give another signal, register one, or write an adapter that has it"
                )
            )
    if substitute.corrects and site is not None and not site.replaces_evaluations:
        raise NeedsError(
            f"substitute {substitute.name!r} corrects evaluations, and at site {site.name!r} the forward goes on with "
            "what was evaluated; use site='output', or a substitute that does not correct (correct=0)"
        )
    if substitute.adds_input and site is not None and site.remembers_residuals:
        raise NeedsError(
            f"substitute {substitute.name!r} adds what enters to a difference from it, and site {site.name!r} "
            "remembers such differences already; use substitute='hold' there, which is the same, or site='output'"
        )
    wanted = sorted(needs.curves | needs.tables)
    if wanted and setup.profile is None:
        raise profile_is_missing(policy.name, wanted)
    if setup.profile is not None:
        setup.profile.require(policy.name, wanted)


def _scheduler_in_use(given: Callable[[], Scheduler | None], profile: Profile | None) -> Scheduler | None:
    scheduler = given()
    if scheduler is not None or profile is None or profile.scheduler is None:
        return scheduler
    return scheduler_of(profile.scheduler)
