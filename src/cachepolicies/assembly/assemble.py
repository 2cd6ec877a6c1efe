"""Putting together policy, profile, substitute and site: what every way in does before the first call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from torch import nn

from cachepolicies.adapters.find import check_adapter, network_of, registered_adapter
from cachepolicies.assembly.by_run import ByRun
from cachepolicies.assembly.default import Recipe
from cachepolicies.base.budget import HALF, Budget
from cachepolicies.base.errors import NeedsError, PolicyError, SettingsError
from cachepolicies.base.parallel import context_parallel, why_not_parallel
from cachepolicies.base.sources import memory_of
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
from cachepolicies.engine.watch import Watch
from cachepolicies.learning.store import LearnedProfiles, default_folder
from cachepolicies.policies.limits import Limits, within_limits
from cachepolicies.policies.schedule import Schedule
from cachepolicies.policies.sencache import SenCache
from cachepolicies.profiles.load import load_profile
from cachepolicies.profiles.match import check_profile
from cachepolicies.profiles.missing import profile_is_missing
from cachepolicies.profiles.schema import Profile
from cachepolicies.registry.load import policies
from cachepolicies.schedulers.resolve import scheduler_of
from cachepolicies.sites.resolve import resolved_site
from cachepolicies.substitutes.resolve import as_substitute

BEST = "best"
"""The word for leaving the policy out, where a word has to stand."""

SWITCH = "CACHEPOLICIES_LEARN"
"""Environment variable: 0 switches learning off where a call does not say otherwise."""

_LEARNED: dict[Path, LearnedProfiles] = {}
"""What this process has learned, by the folder where it is kept: shared by all its denoisers."""


@frozen(eq=False)
class Assembly:
    """The parts that serve a denoiser.

    Attributes:
        choice: chooses the engine of every run: the control flow with policy, substitute and profile, all resolved.
        site: where the evaluation is cut, resolved.
        setup: what everything was resolved with.
        settings: the policy as the user wrote it, ``None`` where it was left out.
        substitute: the substitute as the user wrote it, ``None`` where every run has its own.
    """

    choice: Choice
    site: ResolvedSite
    setup: Setup
    settings: PolicySettings | None
    substitute: Substitute | None

    @property
    def adapter(self) -> Adapter | None:
        """What is known of the model's class."""
        return self.setup.adapter

    def substitute_on(self, scheduler: Scheduler | None) -> Substitute:
        """Return the substitute as it would be under another scheduler; raises as its ``resolve``."""
        assert self.substitute is not None
        return as_substitute(self.substitute.resolve(evolve(self.setup, scheduler=scheduler)))


@frozen
class Parts:
    """What a user names the parts of a set-up by, the same for every way in.

    Attributes:
        policy: a name, a spec, or an object; ``None`` for what is best, or SenCache where there are settings.
        settings: of the policy, where it is given by name.
        profile: a `Profile`, what `load_profile` takes, or ``None``.
        substitute: a name, a spec, or an object; ``None`` for what goes best with the policy.
        site: a name, a spec, the path of a submodule, or an object; ``None`` for what goes best with the policy.
        adapter: instead of the one registered for the model's class.
        limits: laid around the policy.
        budget: what a run may cost, or has to reach.
        learn: whether runs are learned from where nothing is known: ``True`` to keep what is learned in the user's
            cache folder, a folder, or ``False``.
        published_site: where the evaluation is cut for a policy that decides by a threshold, where no site is given.
    """

    policy: str | PolicySettings | None
    settings: Mapping[str, Any]
    profile: Profile | str | Path | None
    substitute: str | Substitute | None
    site: str | Site | None
    adapter: Adapter | None
    limits: Limits | None
    budget: Budget | None = None
    learn: bool | str | Path = True
    published_site: str = "output"


def assemble(
    model: Callable[..., Any],
    parts: Parts,
    *,
    engine_settings: Callable[[Adapter | None], EngineSettings],
    notes: Callable[[RunInfo], Sequence[str]],
    scheduler: Callable[[], Scheduler | None],
    or_of_profile: bool = True,
    guidance: Callable[[], float | None] = lambda: None,
    part: bool = False,
) -> Assembly:
    """Check, resolve and build everything.

    Args:
        model: the denoiser.
        parts: what the user named.
        engine_settings: given the adapter, returns how the engine treats batches and branches.
        notes: what to note in the trace when a run begins.
        scheduler: returns the scheduler in use, or ``None`` if it is not known; asked only where it is wanted.
        or_of_profile: whether the profile's is taken where it is not known. Not if there is one of another kind.
        guidance: returns the scale of the guidance, where the caller knows it.
        part: whether the denoiser may be called in a part of a run only.

    Raises:
        UnknownNameError, SettingsError, NeedsError, PolicyError, PluginError, ProfileError: see their messages.
    """
    given = parts.profile
    profile = given if given is None or isinstance(given, Profile) else load_profile(given)
    settings = _policy_of(parts)
    network = network_of(model)
    adapter = parts.adapter
    if adapter is not None:
        check_adapter(adapter)
    elif network is not None:
        adapter = registered_adapter(network)
    in_use = partial(_scheduler_in_use, scheduler, profile if or_of_profile else None)
    setup = Setup(profile, scheduler=in_use, model=model, network=network, adapter=adapter)
    best = settings is None or (isinstance(settings, SenCache) and settings.is_solved_for)
    by_run = best or parts.budget is not None
    site_name = parts.site
    if site_name is None:
        own = None if settings is None else settings.site
        site_name = own or ("output" if best else parts.published_site)
    site = resolved_site(site_name, setup.with_parts(substitute=as_substitute("hold")))
    setup = setup.with_parts(site=site)
    around = engine_settings(adapter)
    stands_in = parts.substitute or (None if settings is None else settings.substitute)
    make = partial(_engine, site=site, limits=parts.limits, settings=around, notes=notes, warned=set())
    if profile is not None:
        check_profile(profile, model=model)
    if not by_run:
        assert settings is not None
        named = as_substitute(stands_in or "hold")
        setup = setup.with_parts(substitute=as_substitute(named.resolve(setup)))
        return Assembly(make(setup, settings, watch=None), site, setup, settings, named)

    def build(recipe: Recipe, known: Profile | None, watch: Watch | None) -> Engine:
        there = setup.with_parts(profile=known, scheduler=partial(_scheduler_in_use, scheduler, known))
        stand_in = as_substitute(as_substitute(recipe.substitute).resolve(there))
        return make(there.with_parts(substitute=stand_in), recipe.policy, watch=watch)

    choice = ByRun(
        setup=setup,
        budget=parts.budget or Budget(fraction=HALF, given=str(HALF)),
        asked=parts.budget is not None,
        profile=profile,
        rule=settings,
        substitute=stands_in,
        build=build,
        scheduler=scheduler,
        learned=_learned(parts.learn),
        copies=around.copies,
        part=part,
        guidance=guidance,
    )
    return Assembly(choice, site, setup, settings, None)


def _engine(
    setup: Setup,
    policy: PolicySettings,
    *,
    site: ResolvedSite,
    limits: Limits | None,
    settings: EngineSettings,
    notes: Callable[[RunInfo], Sequence[str]],
    warned: set[str],
    watch: Watch | None,
) -> Engine:
    """Return the control flow of a policy in a set-up with everything resolved but the policy."""
    resolved = resolved_policy(policy, setup)
    if limits is not None:
        resolved = within_limits(resolved, limits)
    substitute = setup.substitute
    check_needs(resolved, substitute, setup)
    if resolved.reuses and setup.network is not None:
        _refuse_memory(setup.network)
        ranks = context_parallel(setup.network)
        if ranks > 1:
            raise SettingsError(why_not_parallel(setup.network, ranks))
    return Engine(
        resolved, substitute, setup.profile, settings, site.parts_rows, site.shares, notes, warned, watch, setup.network
    )


def _refuse_memory(network: nn.Module) -> None:
    """Refuse a network whose skipped calls would be missed by later ones.

    Raises:
        SettingsError: one of its modules keeps keys and values from one call for later ones.
    """
    found = memory_of(network)
    if found is not None:
        raise SettingsError(
            f"{type(network).__name__} keeps keys or values from call to call ({found}): a call that is skipped leaves "
            "none, and later ones would be drawn without them. It cannot be cached as it is; a network that is handed "
            "its memory as an argument can be enabled, and evaluates the calls that come with one"
        )


def _policy_of(parts: Parts) -> PolicySettings | None:
    if parts.policy == BEST or (parts.policy == Schedule.name and not parts.settings and parts.budget is not None):
        return None  # a schedule without steps of its own is the plan
    if parts.policy is not None:
        return as_policy(parts.policy, parts.settings)
    return as_policy(SenCache.name, parts.settings) if parts.settings else None


def _learned(learn: bool | str | Path) -> LearnedProfiles | None:
    if learn is False or (learn is True and os.environ.get(SWITCH, "1") == "0"):
        return None
    folder = default_folder() if learn is True else Path(learn).expanduser()
    return _LEARNED.setdefault(folder, LearnedProfiles(folder))


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
        PolicyError: the policy decides place by place, and has an `observe_place`; or the substitute keeps what it does
            not want.
    """
    needs, site = policy.needs, setup.site
    if policy.observes_places and policy.grain == "place":
        raise PolicyError(
            f"policy {policy.name!r} decides place by place, so that observe is told of every place; observe_place is "
            "for one that decides once a call"
        )
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
    if substitute.keeps_branches and not substitute.wants_branches:
        raise PolicyError(
            f"substitute {substitute.name!r} keeps what other branches returned (keeps_branches), and does not want to "
            "look at it; let wants_branches be True too"
        )
    if substitute.adds_input and site is not None and site.remembers_residuals:
        raise NeedsError(
            f"substitute {substitute.name!r} adds what enters to a difference from it, and site {site.name!r} "
            "remembers such differences already; use substitute='hold' there, which is the same, or site='output'"
        )
    wanted = sorted(needs.curves | needs.tables)
    if wanted and setup.profile is None:
        raise profile_is_missing(policy.name, wanted, setup.model)
    if setup.profile is not None:
        setup.profile.require(policy.name, wanted)


def _scheduler_in_use(given: Callable[[], Scheduler | None], profile: Profile | None) -> Scheduler | None:
    scheduler = given()
    if scheduler is not None or profile is None or profile.scheduler is None:
        return scheduler
    return scheduler_of(profile.scheduler)
