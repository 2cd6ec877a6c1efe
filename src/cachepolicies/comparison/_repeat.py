"""How a comparison is done again: the command that was typed, and Python that says the same."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cachepolicies.comparison._run_settings import Recipe
from cachepolicies.comparison.candidate import Candidate
from cachepolicies.comparison.workload import Workload
from cachepolicies.profiles.schema import Profile

if TYPE_CHECKING:
    from types import ModuleType

PROGRAM = "cachepolicies"
"""The command of this library, and the package whose modules are run with ``python -m``."""

_FIELDS = ("num_steps", "profile", "substitute", "site", "budget", "target", "limits", "baselines")


def command() -> str:
    """Return what was typed, if it was a command of this library; otherwise nothing."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    module = "" if spec is None else spec.name.removesuffix(".__main__")
    if module == PROGRAM or module.startswith(f"{PROGRAM}."):
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    if Path(sys.argv[0]).name == PROGRAM:
        return shlex.join([PROGRAM, *sys.argv[1:]])
    return ""


def recipe_of(workload: Workload, candidates: Sequence[Candidate], options: Sequence[tuple[str, int]]) -> Recipe:
    """Return how to compare the same again.

    Args:
        workload: what was sampled.
        candidates: all of them, baselines and the uncached one too.
        options: further arguments of `compare`, name to value.
    """
    given = [each for each in candidates if each.matches is None and each.kind != "uncached"]
    written = [f"{name}={value!r}" for name, value in options]
    if not any(each.matches for each in candidates):
        written.append("baselines=False")
    return Recipe(
        command=command(),
        workload=_workload(workload),
        candidates=[_candidate(each) for each in given],
        options="".join(f", {option}" for option in written),
    )


def _workload(workload: Workload) -> list[str]:
    """Return lines that make the workload, by the function that is called like it where there is one."""
    module: ModuleType | None = sys.modules.get(getattr(workload.inputs, "__module__", ""))
    name = workload.name.replace("-", "_")
    if module is None or module.__name__ == "__main__" or not callable(getattr(module, name, None)):
        return ["", f"workload = ...  # the Workload {workload.name!r}, {workload.num_steps} steps"]
    return [
        f"from {module.__name__} import {name}",
        "import attrs",
        "",
        f"workload = attrs.evolve({name}(), num_steps={workload.num_steps})",
    ]


def _candidate(candidate: Candidate) -> str:
    if candidate.policy is not None and not isinstance(candidate.policy, str):
        return f"# {candidate.label!r} was made in Python: {' '.join(repr(candidate.policy).split())}"
    usual = Candidate(candidate.label, candidate.policy)
    given = [
        f"{name}={_value(getattr(candidate, name))}"
        for name in _FIELDS
        if getattr(candidate, name) != getattr(usual, name)
    ]
    if candidate.kind != usual.kind:
        given.append(f"kind={candidate.kind!r}")
    return f"Candidate({', '.join([repr(candidate.label), repr(candidate.policy), *given])}),"


def _value(value: object) -> str:
    if isinstance(value, Profile):
        return repr(value.name)
    return repr(str(value)) if isinstance(value, Path) else repr(value)
