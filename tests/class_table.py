"""Every transformer and U-Net class of the installed diffusers, set up and run at ``blocks`` and at ``output``.

``python tests/class_table.py --write docs/usage/models.md`` brings the table of the page up to date.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import diffusers.models.transformers
import diffusers.models.unets
import torch
from attrs import frozen
from diffusers import ModelMixin
from torch import Tensor, nn

import cachepolicies
from cachepolicies.base.errors import CachePoliciesError
from cachepolicies.registry.load import adapters
from making_models import TinyModel
from other_models import OTHERS
from tiny_models import TINY, level, moved

BEGIN = "<!-- begin generated: python tests/class_table.py --write docs/usage/models.md -->"
END = "<!-- end generated classes -->"

SITES = ("blocks", "output")
_CALLS = 6


@frozen
class Outcome:
    """What becomes of a class at a site.

    Attributes:
        kind: ``"adapter"``, ``"generic"`` (served without one), or ``"refused"`` when it is set up.
        reason: of the refusal, or what else is to be known; empty where there is nothing to say.
    """

    kind: str
    reason: str = ""


def classes() -> list[str]:
    """Return the names of all models in diffusers' packages of transformers and U-Nets, sorted."""
    found: set[str] = set()
    for package in (diffusers.models.transformers, diffusers.models.unets):
        for module in pkgutil.iter_modules(package.__path__):
            if "flax" in module.name:
                continue
            members = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
            found |= {
                name
                for name, kind in members.items()
                if inspect.isclass(kind)
                and issubclass(kind, ModelMixin)
                and kind.__module__ == f"{package.__name__}.{module.name}"
            }
    return sorted(found)


def generated() -> str:
    """Return what stands on the page between the two marks, both included."""
    head = f"| class of diffusers {diffusers.__version__} | `blocks` | `output` |\n| --- | --- | --- |"
    lines = [_row(name) for name in classes()]
    return "\n\n".join((BEGIN, "## Every class of diffusers", "\n".join((head, *lines)), END))


def _row(name: str) -> str:
    tiny = tiny_of(name)
    if tiny is None:
        raise AssertionError(f"{name} has no tiny model: add one to tests/other_models.py")
    cells = []
    for site in SITES:
        found = outcome(name, tiny, site)
        kind = {"generic": "generic" if site == "blocks" else "yes"}.get(found.kind, found.kind)
        cells.append(f"{kind}: {found.reason}" if found.reason else kind)
    return f"| `{name}` | {' | '.join(cells)} |"


def tiny_of(name: str) -> TinyModel | None:
    """Return the tiny model of a class, ``None`` where there is none."""
    if name in TINY:
        return TINY[name]
    return OTHERS[name]() if name in OTHERS else None


def outcome(name: str, tiny: TinyModel, site: str) -> Outcome:
    """Set a class up at a site and run it; see `Outcome`.

    Raises:
        AssertionError: it was accepted, and then failed, or what it drew was wrong.
    """
    model = tiny.build()
    try:
        cachepolicies.enable(model, policy="never", site=site).disable()
    except CachePoliciesError as refusal:
        return Outcome("refused", _short(str(refusal)))
    said = ""
    for rows in (1, 3):
        try:
            said = _check(model, tiny, rows, site) or said
        except CachePoliciesError as error:
            raise AssertionError(f"{name} is accepted at {site!r}, and a batch of {rows} fails: {error}") from error
    known = any(kind.__name__ in adapters() for kind in type(model).__mro__)
    one = "one decision a batch: " if "as one here" in said else ""
    return Outcome("adapter" if known and site == "blocks" else "generic", one + _short(said) if said else "")


@torch.no_grad()
def _check(model: nn.Module, tiny: TinyModel, rows: int, site: str) -> str:
    """Run a model without a cache, with `never`, and reusing every second call; compare. Return what was warned of."""
    calls = list(_calls(tiny, rows))
    plain = [_tensors(model(**inputs)) for inputs in calls]
    levels = [level(tiny, inputs) for inputs in calls]
    for policy in ("never", "uniform:every=2"):
        calls = list(_calls(tiny, rows))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with cachepolicies.enable(model, policy=policy, site=site) as enabled, enabled.run(levels):
                drawn = [_tensors(model(**inputs)) for inputs in calls]
        told = [str(each.message) for each in caught if issubclass(each.category, cachepolicies.CacheWarning)]
        trace = enabled.trace
        for number, (one, other) in enumerate(zip(plain, drawn, strict=True)):
            same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert same or (policy != "never" and number % 2), f"call {number} of {policy!r} is not the plain one"
        if policy != "never" and not told:
            assert trace.nfe == _CALLS / 2, f"{trace.nfe} evaluations of {_CALLS}"
        if told:
            return told[0]
    return ""


def _calls(tiny: TinyModel, rows: int) -> Iterator[dict[str, Any]]:
    inputs = tiny.inputs(rows, 0, tiny.t_start)
    for number in range(_CALLS):
        yield inputs
        inputs = moved(tiny, inputs, seed=number)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.clone()]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items if item is not None for tensor in _tensors(item)]


def _short(message: str) -> str:
    """Return what a refusal or a warning says of the class, without the advice."""
    for mark in ("there is no adapter for this class, and ", "as one here: ", "): ", ": "):
        if mark in message:
            message = message.split(mark, 1)[1]
            break
    message = re.split(r"[.;:] (?=[A-Z]|use |see )", message)[0].strip()
    return re.sub(r"[|<>]", " ", message)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace what is between the marks of this page")
    path: Path | None = parser.parse_args().write
    if path is None:
        print(generated())
        return
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    path.write_text(before + generated() + rest.partition(END)[2])


if __name__ == "__main__":
    main()
