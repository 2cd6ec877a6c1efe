"""Names for the shell to complete: what is registered, and the shipped profiles."""

from __future__ import annotations

from collections.abc import Iterable

from cachepolicies.assembly.assemble import BEST
from cachepolicies.profiles.load import shipped_profiles
from cachepolicies.registry.load import policies, sites, substitutes


def policy_names(incomplete: str) -> list[str]:
    """Return the policies that begin so."""
    return _beginning([BEST, *policies().names()], incomplete)


def substitute_names(incomplete: str) -> list[str]:
    """Return the substitutes that begin so."""
    return _beginning(substitutes().names(), incomplete)


def site_names(incomplete: str) -> list[str]:
    """Return the sites that begin so."""
    return _beginning(sites().names(), incomplete)


def profile_names(incomplete: str) -> list[str]:
    """Return the shipped profiles that begin so."""
    return _beginning(shipped_profiles(), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
