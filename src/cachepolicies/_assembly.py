"""Putting together policy, profile, substitute and site: what every way in does before the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import nn

from cachepolicies import _plugins
from cachepolicies._engine import Engine, EngineSettings
from cachepolicies._errors import NeedsError, PolicyError, SettingsError
from cachepolicies._policy import CachePolicy, TakesFromProfile, TakesFromSetup
from cachepolicies._setup import Setup
from cachepolicies._step import RunInfo
from cachepolicies._substitute import InSchedulerTime, Substitute
from cachepolicies.adapters.base import Adapter
from cachepolicies.adapters.find import adapter_of, check_adapter, network_of, registered_adapter
from cachepolicies.profiles.load import load_profile
from cachepolicies.profiles.match import check_profile
from cachepolicies.profiles.schema import Profile
from cachepolicies.schedulers.base import Scheduler
from cachepolicies.schedulers.resolve import scheduler_of
from cachepolicies.sites.base import Site
from cachepolicies.sites.blocks import BlocksSite
from cachepolicies.sites.output import OutputSite
from cachepolicies.sites.submodule import SubmoduleSite


@frozen(eq=False)
class Assembly:
    """The parts that serve a denoiser.

    Attributes:
        engine: the control flow with policy, substitute and profile.
        site: where the evaluation is cut.
        adapter: what is known of the model's class, where the site needed it.
        substitute_on: returns the substitute as it would be under another scheduler; ``None`` where it follows none.
    """

    engine: Engine
    site: Site
    adapter: Adapter | None
    substitute_on: Callable[[Scheduler | None], Substitute] | None = None


def assemble(
    model: Callable[..., Any],
    policy: str | CachePolicy,
    settings: Mapping[str, Any],
    *,
    profile: Profile | str | Path | None,
    substitute: str | Substitute,
    site: str,
    adapter: Adapter | None,
    engine_settings: Callable[[Adapter | None], EngineSettings],
    notes: Callable[[RunInfo], Sequence[str]],
    scheduler: Callable[[], Scheduler | None],
    or_of_profile: bool = True,
) -> Assembly:
    """Check and build everything.

    Args:
        model: the denoiser.
        policy: a name, a spec, or an object.
        settings: of the policy, where it is given by name.
        profile: a `Profile`, what `load_profile` takes, or ``None``.
        substitute: a name, a spec, or an object.
        site: ``"output"``, ``"blocks"`` or the path of a submodule.
        adapter: instead of the one registered for the model's class.
        engine_settings: given the adapter, returns how the engine treats batches and branches.
        notes: what to note in the trace when a run begins.
        scheduler: returns the scheduler in use, or ``None`` if it is not known; asked only where it is wanted.
        or_of_profile: whether the profile's is taken where it is not known. Not if there is one of another kind.

    Raises:
        UnknownNameError, SettingsError, NeedsError, PolicyError, ProfileError: see their messages.
    """
    loaded = profile if profile is None or isinstance(profile, Profile) else load_profile(profile)
    made = make_policy(policy, settings)
    if isinstance(made, TakesFromProfile):
        made = made.bind(loaded)
    in_use = partial(_scheduler_in_use, scheduler, loaded if or_of_profile else None)
    stand_in = make_substitute(substitute)
    substitute_on = None
    if isinstance(stand_in, InSchedulerTime):
        substitute_on = partial(_substitute_on, stand_in, loaded)
        stand_in = substitute_on(in_use())
    if isinstance(made, TakesFromSetup):
        made = make_policy(made.suit(Setup(loaded, stand_in, in_use)), {})
    placed, known = make_site(model, site, adapter)
    check_needs(made, loaded, placed, model)
    engine = Engine(made, stand_in, loaded, engine_settings(known), notes)
    if loaded is not None:
        check_profile(loaded, model=model)
    return Assembly(engine, placed, known, substitute_on)


def _substitute_on(substitute: InSchedulerTime, profile: Profile | None, scheduler: Scheduler | None) -> Substitute:
    return make_substitute(substitute.on(scheduler, profile))


def _scheduler_in_use(given: Callable[[], Scheduler | None], profile: Profile | None) -> Scheduler | None:
    scheduler = given()
    if scheduler is not None or profile is None or profile.scheduler is None:
        return scheduler
    return scheduler_of(profile.scheduler)


def make_policy(policy: str | CachePolicy, settings: Mapping[str, Any]) -> CachePolicy:
    """Return the policy that a name, a spec or an object stands for."""
    if isinstance(policy, str):
        made: object = _plugins.policies().create(policy, **settings)
    elif settings:
        raise SettingsError(
            f"settings {', '.join(sorted(settings))} were given beside a policy object; set them on the object, or "
            "give the policy by name"
        )
    else:
        made = policy
    if not isinstance(made, CachePolicy) or isinstance(made, type):
        raise PolicyError(f"policy {made!r} does not follow the CachePolicy contract; see cachepolicies.CachePolicy")
    return made


def make_substitute(substitute: str | Substitute) -> Substitute:
    """Return the substitute that a name, a spec or an object stands for."""
    made: object = _plugins.substitutes().create(substitute) if isinstance(substitute, str) else substitute
    if not isinstance(made, Substitute) or isinstance(made, type):
        raise PolicyError(f"substitute {made!r} does not follow the Substitute contract; see cachepolicies.Substitute")
    if not isinstance(made.history, int) or made.history < 1:
        raise PolicyError(f"substitute {made.name!r} asks for a history of {made.history!r}; it is an integer >= 1")
    return made


def make_site(model: Callable[..., Any], site: str, adapter: Adapter | None) -> tuple[Site, Adapter | None]:
    """Return the site, and what is known of the model's class: at other sites than its blocks, how it takes rows."""
    if not isinstance(site, str) or not site:
        raise SettingsError(f"site is {site!r}; it is 'output', 'blocks' or the path of a submodule")
    if adapter is not None:
        check_adapter(adapter)
    network = network_of(model)
    known = adapter if adapter is not None or network is None else registered_adapter(network)
    if site == "output":
        return OutputSite(), known
    if network is None:
        raise NeedsError(
            f"site {site!r} is inside the network, and {type(model).__name__} is no torch.nn.Module. A wrapper names "
            "the module it calls by an attribute `network`; any callable can be cut at site='output'"
        )
    _refuse_frozen_graphs(network)
    if site == "blocks":
        known = adapter_of(network) if known is None else known
        return BlocksSite(network, known), known
    return SubmoduleSite(network, site), known


def check_needs(policy: CachePolicy, profile: Profile | None, site: Site, model: Callable[..., Any]) -> None:
    """Check that everything the policy declares is provided.

    Raises:
        NeedsError: a signal, a profile, or something in the profile is missing.
    """
    needs = policy.needs
    missing = sorted(needs.signals - site.signals)
    if missing:
        network = network_of(model)
        kind = type(model if network is None else network).__name__
        can = ", ".join(sorted(site.signals)) or "none"
        raise NeedsError(
            f"policy {policy.name!r} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)} from inside the "
            f"model, which site {site.name!r} of {kind} cannot supply (it supplies: {can}); "
            + ("use site='blocks'" if site.name == "output" else "give another signal, or write an adapter that has it")
        )
    wanted = sorted(needs.curves | needs.tables)
    if wanted and profile is None:
        raise NeedsError(
            f"policy {policy.name!r} needs a profile with {', '.join(wanted)}, and none was given. Measure one with "
            "`cachepolicies calibrate MODULE:FUNCTION --out my-profile.json` or cachepolicies.calibrate(model, "
            'scheduler, samples), then pass profile="my-profile.json"; `cachepolicies profiles` lists those shipped'
        )
    if profile is not None:
        profile.require(policy.name, wanted)


def _refuse_frozen_graphs(network: nn.Module) -> None:
    """Refuse modules whose submodules do not run as Python modules any more.

    Raises:
        SettingsError: the network is scripted, traced or exported.
    """
    import torch
    from torch import fx

    if isinstance(network, (torch.jit.ScriptModule, fx.GraphModule)):
        raise SettingsError(
            f"the model is a {type(network).__name__}: its blocks run inside one graph, where nothing can be skipped. "
            "Enable the cache on the eager model and compile with torch.compile, or use site='output'"
        )
