"""What a plan is to reach, instead of a budget: a prediction of the objective, or a PSNR or RMS of new samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from numbers import Real

from attrs import frozen

from cachepolicies.base.errors import NeedsError, SettingsError
from cachepolicies.contracts.substitute import Substitute
from cachepolicies.planning.expectation import Expectation, reaches
from cachepolicies.planning.problem import Solution
from cachepolicies.profiles.format import RETRY
from cachepolicies.profiles.schema import Profile, Trials
from cachepolicies.substitutes.resolve import as_substitute


@frozen
class Aim:
    """What a plan must reach.

    Attributes:
        value: in its unit.
        unit: ``"objective"``, ``"dB"`` or ``"rms"``.
    """

    value: float
    unit: str

    def reached(self, point: Solution, expected: Expectation | None) -> bool:
        """Whether a point of the trade-off curve reaches it."""
        if self.unit == "objective" or point.predicted == 0:
            return point.predicted <= self.value
        if expected is None:
            return False
        if self.unit == "dB":
            return reaches(expected.psnr, self.value)
        return reaches(expected.error, -20.0 * math.log10(self.value))


def as_aim(budget: object, target: object) -> Aim | None:
    """Return what ``target`` asks for, None where a budget is given instead.

    Raises:
        SettingsError: both are given or neither, or the target is no number >= 0 and no text such as ``"45dB"``.
    """
    if (budget is None) == (target is None):
        raise SettingsError(f"give either budget or target, got budget={budget!r} and target={target!r}")
    if target is None:
        return None
    if isinstance(target, str):
        return _from_text(target)
    if isinstance(target, bool) or not isinstance(target, Real) or not 0 <= float(target) < math.inf:
        raise SettingsError(
            f"target is {target!r}, expected a predicted error: a finite number >= 0; or what new samples shall have, "
            "as '45dB' or '0.01rms'"
        )
    return Aim(float(target), "objective")


def _from_text(text: str) -> Aim:
    for unit in ("dB", "rms"):
        number = text.strip()
        if number.lower().endswith(unit.lower()):
            with contextlib.suppress(ValueError):
                value = float(number[: -len(unit)])
                if math.isfinite(value) and value > 0:
                    return Aim(value, unit)
    raise SettingsError(
        f"target is {text!r}, expected a positive number with its unit: '45dB', the PSNR of new samples, or '0.01rms', "
        "the RMS of their latents' error"
    )


def good_enough(
    profile: Profile, spec: str, aim: Aim, curve: Sequence[Solution], expected: Sequence[Expectation | None]
) -> Solution:
    """Return the first point of the curve that reaches an aim; the last reuses nothing, and reaches any."""
    if aim.unit != "objective":
        known = [e for e in expected if e is not None]
        if not known:
            raise NeedsError(
                f"target '{aim.value:g}{aim.unit}' needs trials of such plans (substitute {spec!r}, without max_reuse "
                f"and always), which profile {profile.name!r} does not have (it has: "
                f"{'; '.join(f'{t.substitute}, {t.objective}, {t.weights}' for t in profile.trials) or 'none'}); "
                f"{RETRY}, or give a budget"
            )
        if aim.unit == "dB" and known[0].psnr is None:
            raise NeedsError(
                f"target '{aim.value:g}dB' needs trials with pictures, and those of profile {profile.name!r} decoded "
                "none; give try_plans a decode=, or a target in rms"
            )
    best = next((s for s, e in zip(curve, expected, strict=True) if aim.reached(s, e)), None)
    return curve[-1] if best is None else best


def trials_of(profile: Profile, substitute: Substitute, objective: str, weights: str) -> Trials | None:
    """Return the trials of plans that were made like this, None where the profile has none."""
    for tried in profile.trials:
        if (tried.objective, tried.weights) == (objective, weights) and as_substitute(tried.substitute) == substitute:
            return tried
    return None
