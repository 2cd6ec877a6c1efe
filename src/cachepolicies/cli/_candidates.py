"""Candidates of a comparison as a command line names them, checked before anything heavy is imported."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cachepolicies.assembly.assemble import BEST
from cachepolicies.base.budget import as_budget
from cachepolicies.base.errors import SettingsError, nearest_match_hint
from cachepolicies.registry.load import policies, sites, substitutes

if TYPE_CHECKING:
    from cachepolicies.comparison.candidate import Candidate

KEYS = ("policy", "budget", "target", "substitute", "site", "profile", "steps", "label")

Fields = dict[str, str]


def fields_of(named: Sequence[str], described: Sequence[str], common: Mapping[str, str | None]) -> list[Fields]:
    """Return the fields of every candidate: of those named by a policy alone, and of those described in full.

    Args:
        named: policies.
        described: ``"policy=best budget=0.4 substitute=hold"``, words as in a shell.
        common: what holds for every candidate that does not say otherwise.

    Raises:
        SettingsError: a word is no ``key=value``, a key is unknown or there twice, or a value is wrong.
        UnknownNameError: no policy, substitute or site is registered under a name.
    """
    default = {key: value for key, value in common.items() if value is not None}
    found = [default | {"policy": policy} for policy in named]
    for text in described:
        own = _parsed(text)
        kept = {k: v for k, v in default.items() if not (k in ("budget", "target") and {"budget", "target"} & {*own})}
        found.append(kept | own)
    for each in found:
        _check(each)
        each.setdefault("label", _label(each, default))
    return found


def candidate_of(fields: Fields, profiles: Mapping[str, Any]) -> Candidate:
    """Return a candidate with its profile, which was loaded by name."""
    from cachepolicies.comparison.candidate import Candidate

    steps = fields.get("steps")
    return Candidate(
        fields["label"],
        fields.get("policy", BEST),
        None if steps is None else int(steps),
        profile=profiles[fields["profile"]] if "profile" in fields else None,
        substitute=fields.get("substitute"),
        site=fields.get("site"),
        budget=fields.get("budget"),
        target=fields.get("target"),
    )


def _parsed(text: str) -> Fields:
    found: Fields = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise SettingsError(
                f"--candidate {text!r}: {word!r} is not key=value; write for example 'policy=teacache budget=0.4 "
                "site=blocks'"
            )
        if key not in KEYS:
            raise SettingsError(f"--candidate {text!r}: unknown key {key!r}: {nearest_match_hint(key, KEYS)}")
        if key in found:
            raise SettingsError(f"--candidate {text!r}: {key} is given twice")
        found[key] = value
    return found


def _check(fields: Fields) -> None:
    """Make what can be made without a model, so that what is wrong with a name or a setting is said at once."""
    policy = fields.get("policy", BEST)
    if policy != BEST and not (policy == "schedule" and "budget" in fields):
        policies().create(policy)
    if "substitute" in fields:
        substitutes().create(fields["substitute"])
    if "site" in fields:
        _check_site(fields["site"])
    as_budget(fields.get("budget"), fields.get("target"))
    if not fields.get("steps", "1").isdecimal():
        raise SettingsError(f"steps={fields['steps']} is no whole number")


def _check_site(site: str) -> None:
    """Refuse what is neither a registered name nor a path, a pattern, a range of blocks, or several of these."""
    if site.partition(":")[0] in sites():
        return
    for part in site.split("+"):
        if not any(mark in part for mark in ".*[") and part.partition(":")[0] not in sites():
            hint = nearest_match_hint(part, sites().names())
            raise SettingsError(f"unknown site {part!r}: {hint}; or give the path of a submodule, with a dot")


def _label(fields: Fields, common: Fields) -> str:
    """Return a name that tells a candidate from its neighbours: what is its own."""
    own = [fields.get("policy", BEST)]
    own += [fields[key] for key in ("budget", "target") if key in fields]
    own += [fields[key] for key in ("substitute", "site", "profile", "steps") if fields.get(key) != common.get(key)]
    return " ".join(text for text in own if text)
