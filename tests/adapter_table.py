"""The tables of ``docs/usage/models.md``, made from the registered adapters and from what the tests run.

``python tests/adapter_table.py --write docs/usage/models.md`` brings the page up to date.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cachepolicies.adapters import Adapter, Blocks
from cachepolicies.registry.load import adapters
from cachepolicies.registry.registry import Entry
from tiny_models import TINY
from tiny_pipelines import PIPELINES

BEGIN = "<!-- begin generated: python tests/adapter_table.py --write docs/usage/models.md -->"
END = "<!-- end generated -->"
NONE = "\N{EN DASH}"

CLOCKS = {"timestep": "t", "unit": "t / 1000", "reversed-unit": "1 - t / 1000"}

Row = tuple[str, ...]


def generated() -> str:
    """Return what stands on the page between the two marks, both included."""
    known = [(entry, entry.factory()) for entry in adapters().entries() if entry.distribution == "cachepolicies"]
    tested = _pipelines()
    first = _table(
        ("class", "for", "signals", "tested on a tiny model", "tested in a real pipeline", "the place follows"),
        [_use(entry, adapter, tested.get(entry.name, ())) for entry, adapter in known],
    )
    second = _table(
        (
            "class",
            "stack, in order",
            "streams",
            "the stack ends",
            "one decision for",
            "its pipelines call it with",
            "note",
        ),
        [_structure(adapter) for _, adapter in known],
    )
    parts = (BEGIN, "## Classes, and what is tested", first, "## Where each is cut", second, END)
    return "\n\n".join(parts)


def replaced(page: str) -> str:
    """Return a page with what is between its marks made anew.

    Raises:
        ValueError: a mark is missing, or stands there twice.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs {BEGIN!r} and {END!r}, once each")
    before, _, rest = page.partition(BEGIN)
    return before + generated() + rest.partition(END)[2]


def _use(entry: Entry[Adapter], adapter: Adapter, pipelines: Sequence[str]) -> Row:
    return (
        f"`{entry.name}`",
        entry.summary.rstrip("."),
        ", ".join(f"`{name}`" for name in sorted(adapter.signals)) or NONE,
        _tiny(entry.name),
        ", ".join(pipelines) or NONE,
        adapter.source,
    )


def _structure(adapter: Adapter) -> Row:
    return (
        f"`{adapter.model}`",
        ", ".join(f"`{blocks.path}`" for blocks in adapter.stack),
        _streams(adapter.streams, adapter.stack),
        f"before `{adapter.ends_before}`" if adapter.ends_before else "behind the last block",
        "a sample" if adapter.rows_independent else "the batch",
        CLOCKS[adapter.clock],
        adapter.note or NONE,
    )


def _streams(streams: Sequence[str], stack: Sequence[Blocks]) -> str:
    """Name the streams, and where among the tokens of the last block they are if that is not everywhere."""
    joined = {"all": "", "head": ", the first tokens of those joined", "tail": ", the last tokens of those joined"}
    return ", ".join(f"`{name}`" for name in streams) + joined[stack[-1].part]


def _tiny(name: str) -> str:
    """Say whether ``tests/test_contracts.py`` runs the class, and in which further configurations."""
    keys = [key for key in TINY if key.partition("-")[0] == name]
    further = [f"`{key.partition('-')[2]}`" for key in keys if key != name]
    if not keys:
        return "no"
    return f"yes; also {', '.join(further)}" if further else "yes"


def _pipelines() -> dict[str, list[str]]:
    """Return the pipeline classes that the tests run, by the class of their denoiser."""
    found: dict[str, list[str]] = {}
    for tiny in PIPELINES.values():
        pipe = tiny.build()
        name = f"`{type(pipe).__name__}`"
        if len(tiny.denoisers) > 1:
            name += f" with {len(tiny.denoisers)} of them"
        for model in dict.fromkeys(type(module).__name__ for module in tiny.modules(pipe)):
            found.setdefault(model, []).append(name)
    return found


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replace what is between the marks of this page")
    path: Path | None = parser.parse_args().write
    if path is None:
        print(generated())
    else:
        path.write_text(replaced(path.read_text()))


if __name__ == "__main__":
    main()
