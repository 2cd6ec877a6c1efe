"""One plan, one JSON file: strict, versioned, read back equal to what was saved."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs

from cachepolicies._documents import dump, problem, strict_converter
from cachepolicies.planning._plan import PLAN_VERSION, REPLAN, Plan, PlanError, PlanPoint
from cachepolicies.profiles.io import write_atomically

PLAN_FORMAT = "cachepolicies-plan"
"""Value of ``format`` in the file."""


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
    target = Path(path)
    if target.suffix != ".json":
        raise PlanError(f"{target}: a plan is a .json file; save it as {target.name + '.json'!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": PLAN_FORMAT, **_converter().unstructure(plan)}
    write_atomically(target, dump(document).encode())
    return target


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
    raw = _read_json(source)
    try:
        if raw.pop("format", None) != PLAN_FORMAT:
            raise PlanError(f"field 'format' is not {PLAN_FORMAT!r}: this is no plan; {REPLAN}")
        if raw.get("version") != PLAN_VERSION:
            raise PlanError(
                f"field 'version' is {raw.get('version')!r}, this library reads {PLAN_VERSION}; update cachepolicies, "
                "or plan again"
            )
        missing = sorted({a.name for a in attrs.fields(Plan)} - raw.keys())
        if missing:
            raise PlanError(f"field {missing[0]!r} is missing (in all: {', '.join(missing)}); {REPLAN}")
        try:
            return _converter().structure(raw, Plan)
        except Exception as error:
            # cattrs raises groups of whatever the hooks and the records raise; all of it means a bad file
            problems = cattrs.transform_error(error, path="field", format_exception=problem)
            raise PlanError(f"{'; '.join(problems)}; {REPLAN}") from error
    except PlanError as error:
        raise PlanError(f"plan {source}: {error}") from error.__cause__


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise PlanError(f"plan {path}: no such file; check the path, or {REPLAN}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan {path}: cannot be read ({error}); check that it is a plan's JSON file") from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"plan {path}: not valid JSON at line {error.lineno} ({error.msg}): truncated or damaged; {REPLAN}"
        ) from error
    if not isinstance(raw, dict):
        raise PlanError(f"plan {path}: holds a {type(raw).__name__}, not an object; {REPLAN}")
    return raw


def _from_list(structure: Any) -> Any:
    """A hook that takes a JSON list only: cattrs by itself would read the letters of a string, or an object's keys."""

    def checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, list):
            raise PlanError(f"{value!r} is a {type(value).__name__}, expected a list")
        return structure(value, kind)

    return checked


@functools.cache
def _converter() -> cattrs.Converter:
    converter = strict_converter(PlanError)
    for row in (tuple[int, ...], tuple[float, ...], tuple[PlanPoint, ...]):
        hook = _from_list(converter.get_structure_hook(row))
        converter.register_structure_hook_func(functools.partial(operator.eq, row), hook)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], lambda value, _: value)
    return converter
