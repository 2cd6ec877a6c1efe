"""One plan, one JSON file: strict, versioned, read back equal to what was saved."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs

from cachepolicies.base.documents import strict_converter
from cachepolicies.planning.plan_record import PLAN, Plan, PlanError, PlanPoint


def save_plan(plan: Plan, path: str | Path) -> Path:
    """Write a plan; the file appears whole or not at all.

    Args:
        plan: what to write.
        path: the file, with suffix ``.json``; its folder is created.

    Returns:
        The path.

    Raises:
        PlanError: another suffix.
    """
    target = PLAN.target(path)
    PLAN.write(_plan_converter().unstructure(plan), target)
    return target


def plan_as_json(plan: Plan) -> str:
    """Return a plan as the text that `save_plan` writes."""
    return PLAN.text(_plan_converter().unstructure(plan))


def read_plan(path: str | Path) -> Plan:
    """Read a plan and check all of it.

    Args:
        path: the JSON file.

    Returns:
        The plan; equal to the one that was saved.

    Raises:
        PlanError: the file is missing, truncated, of another format or version, lacks a key or has an unknown one, or
            a value in it is not valid. Names file, field and value.
    """
    source = Path(path)
    with PLAN.naming(source):
        raw = PLAN.fields(source)
        if raw["version"] in PLAN.older:
            raw = _from_version_1(raw)
        PLAN.check_complete(raw, Plan)
        return PLAN.structured(raw, Plan, _plan_converter())


def _from_version_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Add what version 2 added: targets of new samples."""
    if "target_unit" in raw:
        raise PlanError("field 'target_unit' is not part of version 1 of the format")
    return {**raw, "target_unit": "objective", "version": PLAN.version}


def _from_list(structure: Any) -> Any:
    """A hook that takes a JSON list only: cattrs by itself would read the letters of a string, or an object's keys."""

    def checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, list):
            raise PlanError(f"{value!r} is a {type(value).__name__}, expected a list")
        return structure(value, kind)

    return checked


@functools.cache
def _plan_converter() -> cattrs.Converter:
    converter = strict_converter(PlanError)
    for row in (tuple[int, ...], tuple[float, ...], tuple[PlanPoint, ...]):
        hook = _from_list(converter.get_structure_hook(row))
        converter.register_structure_hook_func(functools.partial(operator.eq, row), hook)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], lambda value, _: value)
    return converter
