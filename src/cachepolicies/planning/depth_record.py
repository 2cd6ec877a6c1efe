"""A plan in step and depth as a record and as a file: which places of the network to compute at which steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cattrs
from attrs import Attribute, field, frozen

from cachepolicies.base.converters import as_dict, as_tuple, floats, integers
from cachepolicies.base.documents import DocumentFormat, strict_converter
from cachepolicies.planning.plan_fields import PlanError, PlanSource

_REPLAN = "plan again with cachepolicies.calibration.plan_depth"

DEPTH_PLAN = DocumentFormat(
    noun="plan in step and depth",
    name="cachepolicies-depth-plan",
    version=1,
    error=PlanError,
    again="plan again",
    remedy=_REPLAN,
)
"""The format of such plans as files."""


def _steps(instance: object, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    _check_steps(attribute.name, value)


def _check_steps(what: str, value: tuple[int, ...]) -> None:
    if not value or value[0] != 0 or list(value) != sorted({*value}):
        raise PlanError(f"field {what!r} is {value!r}, expected rising steps, 0 first; {_REPLAN}")


@frozen
class PlacePart:
    """When one place is computed.

    Attributes:
        place: its name, at the plan's site.
        share: the part of a call's FLOPs that it does.
        steps: at which it is computed, rising, step 0 first.

    Raises:
        PlanError: the steps do not rise from 0, or the share is not between 0 and 1.
    """

    place: str
    share: float
    steps: tuple[int, ...] = field(converter=integers, validator=_steps)

    def __attrs_post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise PlanError(f"field 'share' of place {self.place!r} is {self.share!r}, expected 0 to 1; {_REPLAN}")


@frozen
class DepthPlan:
    """Which steps of a run to call the network at, and which of its places to compute there.

    At the other steps the whole call is skipped. A plan in steps alone is one of these, whose places are all computed
    wherever the network is called.

    Attributes:
        source: the profile that the weights are from, and what was calibrated.
        timesteps: N values of the scheduler's t, strictly decreasing, one a step.
        site: the places inside, ``"attention+mlp"``; the run is cut at ``"output+"`` and this.
        output: spec of the substitute for skipped calls.
        inside: spec of the substitute at places.
        calls: steps at which the network is called, rising, step 0 first.
        parts: the places, in the order of the site, each computed at some of these steps.
        work: of a run, a part of the FLOPs of N full calls.
        predicted: RMS error of the sample that is predicted: of skipped calls as for a plan in steps alone, of places
            as if all their errors pointed the same way.
        bound: the smallest that any plan with these calls and at most this work could have had, by the same prediction.
        gained: what it gave beyond the plan in steps alone on the calibration samples that chose it, the mean in dB; 0
            for that plan itself.
        gains: the same of every plan in step and depth that was sampled, the one with the least predicted error first.
        versions: distribution name to version.
        created: UTC time in ISO 8601; left out of comparisons.
        version: of the format.

    Raises:
        PlanError: a field is out of range or does not fit the others.
    """

    source: PlanSource
    timesteps: tuple[float, ...] = field(converter=floats)
    site: str
    output: str
    inside: str
    calls: tuple[int, ...] = field(converter=integers, validator=_steps)
    parts: tuple[PlacePart, ...] = field(converter=as_tuple, repr=False)
    work: float
    predicted: float
    bound: float
    gained: float = 0.0
    gains: tuple[float, ...] = field(default=(), converter=floats, repr=False)
    versions: Mapping[str, str] = field(factory=dict, converter=as_dict, hash=False, repr=False)
    created: str = field(default="", eq=False, repr=False)
    version: int = 1

    def __attrs_post_init__(self) -> None:
        DEPTH_PLAN.check_version(self.version)
        steps = len(self.timesteps)
        if any(after >= before for before, after in pairwise(self.timesteps)):
            raise PlanError(f"field 'timesteps' does not decrease strictly; {_REPLAN}")
        if self.calls[-1] >= steps:
            raise PlanError(f"field 'calls' has step {self.calls[-1]}, and there are {steps} timesteps; {_REPLAN}")
        names = [part.place for part in self.parts]
        if not names or len({*names}) < len(names):
            raise PlanError(f"field 'parts' names no place, or one twice: {names}; {_REPLAN}")
        for part in self.parts:
            beyond = sorted({*part.steps} - {*self.calls})
            if beyond:
                raise PlanError(
                    f"field 'parts': place {part.place!r} is computed at step {beyond[0]}, where the network is not "
                    f"called; {_REPLAN}"
                )
        for what in ("work", "predicted", "bound", "gained"):
            if not math.isfinite(getattr(self, what)):
                raise PlanError(f"field {what!r} is {getattr(self, what)}, expected a finite number; {_REPLAN}")
        found = work_of(self.calls, self.parts, steps)
        if abs(found - self.work) > 1e-6:
            raise PlanError(f"field 'work' is {self.work}, and the steps and shares make {found:.6f}; {_REPLAN}")

    @property
    def in_steps_alone(self) -> bool:
        """Whether every place is computed wherever the network is called."""
        return all(part.steps == self.calls for part in self.parts)

    @property
    def substitute(self) -> str:
        """Spec of the substitute to run it with."""
        return f"by-place:output={self.output!r},inside={self.inside!r}"

    @property
    def cut(self) -> str:
        """Spec of the site to run it at."""
        return f"output+{self.site}"


def work_of(calls: tuple[int, ...], parts: tuple[PlacePart, ...], num_steps: int) -> float:
    """Return the part of the FLOPs of ``num_steps`` full calls that these calls and places make."""
    left_out = math.fsum(part.share * (len(calls) - len(part.steps)) for part in parts)
    return (len(calls) - left_out) / num_steps


def save_depth_plan(plan: DepthPlan, path: str | Path) -> Path:
    """Write a plan in step and depth; the file appears whole or not at all.

    Args:
        plan: what to write.
        path: the file, with suffix ``.json``; its folder is created.

    Returns:
        The path.

    Raises:
        PlanError: another suffix, or nothing can be written there.
    """
    target = DEPTH_PLAN.target(path)
    DEPTH_PLAN.write(_converter().unstructure(plan), target)
    return target


def read_depth_plan(path: str | Path) -> DepthPlan:
    """Read a plan in step and depth and check all of it.

    Args:
        path: the JSON file.

    Returns:
        The plan; equal to the one that was saved.

    Raises:
        PlanError: the file is missing, damaged, of another format or version, or a value in it is not valid. Names
            file, field and value.
    """
    source = Path(path)
    with DEPTH_PLAN.naming(source):
        raw = DEPTH_PLAN.fields(source)
        DEPTH_PLAN.check_complete(raw, DepthPlan)
        return DEPTH_PLAN.structured(raw, DepthPlan, _converter())


@functools.cache
def _converter() -> cattrs.Converter:
    converter = strict_converter(PlanError)

    def listed(kind: Any) -> Any:
        hook = converter.get_structure_hook(kind)

        def checked(value: Any, asked: Any) -> Any:
            if not isinstance(value, list):
                raise PlanError(f"{value!r} is a {type(value).__name__}, expected a list")
            return hook(value, asked)

        return checked

    for row in (tuple[int, ...], tuple[float, ...], tuple[PlacePart, ...]):
        converter.register_structure_hook_func(functools.partial(_same, row), listed(row))
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], lambda value, _: value)
    return converter


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)
