"""How much of a run may be evaluated, or how near to the uncached sample the result has to be: the one knob."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real

from attrs import frozen

from cachepolicies.base.errors import SettingsError
from cachepolicies.base.settings import shown

_EXPECTED = (
    "expected a whole number of evaluations (22), a fraction of the uncached work (0.4 or '40%'), or a "
    "speed-up ('2.5x')"
)
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+"
_TEXT = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>x|%|)\s*", re.IGNORECASE)
_TARGET = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>dB|rms)\s*", re.IGNORECASE)

HALF = 0.5
"""What is evaluated where nobody says how much."""


@frozen
class Budget:
    """What a run may cost, or what it has to reach; one of the three is given.

    Attributes:
        evaluations: of a run.
        fraction: of the uncached work, in (0, 1].
        target: the PSNR or RMS that new samples shall have, such as ``"45dB"`` or ``"0.01rms"``.
        given: as the user wrote it, for messages.
    """

    evaluations: int | None = None
    fraction: float | None = None
    target: str | None = None
    given: str = ""

    def of_run(self, num_steps: int, skipped: float = 1.0) -> int:
        """Return how many of a run's steps may be evaluated.

        Args:
            num_steps: N.
            skipped: the part of an evaluation's work that a reuse saves; 1 where it saves everything.

        Raises:
            SettingsError: it is more than N, or less than one evaluation.
        """
        if self.evaluations is not None:
            if self.evaluations > num_steps:
                raise SettingsError(
                    f"budget={self.given} is more than the {num_steps} steps of the run; give at most {num_steps}, or "
                    "leave the cache off"
                )
            return self.evaluations
        if self.fraction is None:
            raise SettingsError(f"target={self.given!r} is no number of evaluations; it takes a plan with trials")
        least = 1.0 - skipped * (num_steps - 1) / num_steps
        wanted = num_steps * (1.0 - (1.0 - self.fraction) / skipped)
        found = math.floor(wanted + 0.5)
        if found < 1:
            raise SettingsError(
                f"budget={self.given} is less than one evaluation of a run of {num_steps} steps; the least here is "
                f"{least:.3g} of the uncached work"
            )
        return min(found, num_steps)


def as_budget(budget: object, target: object = None) -> Budget | None:
    """Return what a user asks for, ``None`` where nothing is asked.

    Args:
        budget: a whole number of evaluations, a fraction of the uncached work, ``"2.5x"``, or any of these as text.
        target: instead, a PSNR ``"45dB"`` or an RMS ``"0.01rms"``.

    Raises:
        SettingsError: it is none of these, out of range, or both are given.
    """
    if isinstance(budget, Budget) and target is None:
        return budget
    if budget is not None and target is not None:
        raise SettingsError(f"give either budget or target, got budget={budget!r} and target={target!r}")
    if target is not None:
        return _target(target)
    return None if budget is None else _budget(budget)


def _target(target: object) -> Budget:
    found = _TARGET.fullmatch(target) if isinstance(target, str) else None
    if found is None or not float(found["number"]) > 0 or not math.isfinite(float(found["number"])):
        raise SettingsError(
            f"target is {shown(target)}, expected a positive number with its unit: '45dB', the PSNR of new samples, or "
            "'0.01rms', the RMS of their latents' error"
        )
    return Budget(target=str(target).strip(), given=str(target).strip())


def _budget(budget: object) -> Budget:
    given = shown(budget)
    if isinstance(budget, bool) or not isinstance(budget, (str, Real)):
        raise SettingsError(f"budget is {given} ({type(budget).__name__}); {_EXPECTED}")
    if isinstance(budget, str):
        return _from_text(budget, given)
    if isinstance(budget, Integral):
        return _evaluations(int(budget), given)
    return _fraction(float(budget), given)


def _from_text(text: str, given: str) -> Budget:
    found = _TEXT.fullmatch(text)
    if found is None:
        hint = "; a quality is asked for by target=" if _TARGET.fullmatch(text) else ""
        raise SettingsError(f"budget is {given}; {_EXPECTED}{hint}")
    number, unit = found["number"], found["unit"].lower()
    if unit == "x":
        factor = float(number)
        if not 1.0 <= factor < math.inf:
            raise SettingsError(f"budget is {given}; a speed-up is at least 1x")
        return Budget(fraction=1.0 / factor, given=given)
    if unit == "%":
        return _fraction(float(number) / 100.0, given)
    return _evaluations(int(number), given) if number.isdigit() else _fraction(float(number), given)


def _evaluations(number: int, given: str) -> Budget:
    if number < 1:
        raise SettingsError(f"budget is {given}; a run takes at least one evaluation")
    return Budget(evaluations=number, given=given)


def _fraction(number: float, given: str) -> Budget:
    if not 0.0 < number <= 1.0:
        raise SettingsError(
            f"budget is {given}; a fraction of the uncached work lies between 0 and 1, a number of evaluations is whole"
        )
    return Budget(fraction=number, given=given)
