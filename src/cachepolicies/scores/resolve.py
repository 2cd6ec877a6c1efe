"""From what a caller names a score by to a score."""

from __future__ import annotations

from typing import Any

from cachepolicies.base.errors import PluginError, SettingsError
from cachepolicies.base.settings import shown
from cachepolicies.contracts.score import Score, ScoreSettings
from cachepolicies.contracts.setup import Setup
from cachepolicies.contracts.substitute import Substitute, order_of
from cachepolicies.profiles.schema import Interpolation, Profile
from cachepolicies.registry.load import scores
from cachepolicies.scores.bound import Bound
from cachepolicies.scores.extrapolated import Extrapolated


def as_score(value: str | ScoreSettings, **settings: Any) -> ScoreSettings:
    """Return the score's settings that a value stands for.

    Args:
        value: a registered name or spec, ``"bound:interpolation=nearest"``; or settings themselves.
        settings: further ones by name; those that are ``None`` are left out.

    Raises:
        UnknownNameError: no score is registered under the name.
        SettingsError: a setting is wrong, or the value is nothing of the kind.
        PluginError: what is registered under the name makes no score.
    """
    given = {name: setting for name, setting in settings.items() if setting is not None}
    if isinstance(value, str):
        made: object = scores().create(value, **given)
        if not isinstance(made, ScoreSettings):
            raise PluginError(
                f"score {value!r} made a {type(made).__name__}; a factory returns a ScoreSettings or a Score"
            )
        return made
    if not isinstance(value, ScoreSettings):
        raise SettingsError(f"score is {shown(value)} ({type(value).__name__}); give a registered name or a score")
    if given:
        raise SettingsError(f"{', '.join(given)} was given beside a score object; set it on the object")
    return value


def score_of(
    name: str, profile: Profile | None, substitute: Substitute, interpolation: Interpolation = "linear"
) -> Score:
    """Return a registered score for a profile and a substitute, whose time is resolved.

    Args:
        name: ``"substitute"``, ``"bound"``, ``"correlated"``, or any other that is registered.
        profile: what calibration measured.
        substitute: what stands in.
        interpolation: how curves are read between calibrated timesteps.

    Raises:
        UnknownNameError: no score has this name.
        SettingsError: ``"correlated"`` for a substitute that extrapolates.
        NeedsError: there is no profile, or it lacks what the score is made from.
        PolicyError: see `Extrapolated`.
    """
    return as_score(name, interpolation=interpolation).resolve(Setup(profile, substitute))


def score_name(substitute: Substitute) -> str:
    """Return the name of the score that ``"substitute"`` stands for."""
    return Extrapolated.name if (order_of(substitute) or 0) > 0 else Bound.name
