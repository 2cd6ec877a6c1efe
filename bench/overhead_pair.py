"""The overhead of two versions of the library, measured in turns on one machine: their medians and the ratio.

    python bench/overhead_pair.py ../before .
    python bench/overhead_pair.py ../before . --bench inplace --pairs 1 --rounds 4

A pair of processes, one a version with that version's ``src`` on its path, runs the version's own bench file again and
again, each for a few seconds while the other one waits, so that what else the machine does weighs on both. Then another
pair does, as the place of things in memory makes a difference that lasts as long as a process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

RUNS = {"overhead": 5, "inplace": 1}
"""Runs of 50 calls in a round."""

WARM_UP = {"overhead": 1, "inplace": 0}
"""Rounds of a pair that do not count; ``inplace`` warms up by itself, and its rounds take a minute."""

FIGURE = {
    "overhead": "microseconds that the engine adds to a call",
    "inplace": "the fastest call as a multiple of the fastest bare call",
}
EXACT = ("waits", "reads", "held_bytes", "cache_ratio")
"""What does not depend on the machine, and should not change at all."""

WORKER = """
import contextlib, importlib.util, io, sys
spec = importlib.util.spec_from_file_location("measured", sys.argv[1])
module = sys.modules["measured"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for line in sys.stdin:
    sys.argv[1:] = line.rstrip("\\n").split("\\t")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.main()
    print("done", flush=True)
"""
"""Runs ``main`` of a bench file once for every line of arguments."""

Costs: TypeAlias = "dict[str, dict[str, Any]]"


class Version:
    """A process that measures one version whenever it is asked."""

    def __init__(self, tree: Path, bench: str, said: Path) -> None:
        self._tree, self._said = tree, said
        with said.open("w") as errors:  # torch's profiler says something there at every use
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tree / "bench" / f"{bench}.py")],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def costs(self, runs: int, out: Path) -> Costs:
        """Return what the bench file writes, by policy and batch, or by variant."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"--runs\t{runs}\t--json\t{out}\n")
            self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise SystemExit(f"{self._tree}: the bench file failed\n{self._said.read_text()[-3000:]}")
        entries = json.loads(out.read_text())
        return {entry.get("variant") or f"batch {entry['batch']}, {entry['policy']}": entry for entry in entries}

    def __enter__(self) -> Version:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if the limit is exceeded or something that is counted differs."""
    parser = argparse.ArgumentParser(description="Measure the overhead of two versions in turns.")
    parser.add_argument("before", type=Path, help="the repository of one version")
    parser.add_argument("after", type=Path, help="that of the other one")
    parser.add_argument("--bench", choices=sorted(RUNS), default="overhead")
    parser.add_argument("--pairs", type=int, default=3, help="of processes, one after the other")
    parser.add_argument("--rounds", type=int, default=8, help="of every pair")
    parser.add_argument("--runs", type=int, help="runs of 50 calls in a round, as the bench file takes them")
    parser.add_argument("--limit", type=float, help="largest ratio that is allowed, the smaller of the two")
    given = parser.parse_args(arguments)
    trees = (given.before.resolve(), given.after.resolve())
    runs, warm_up = given.runs or RUNS[given.bench], WARM_UP[given.bench]
    measured: tuple[list[Costs], list[Costs]] = ([], [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "costs.json"
        for pair in range(given.pairs):
            with (
                Version(trees[0], given.bench, folder / "before.txt") as first,
                Version(trees[1], given.bench, folder / "after.txt") as second,
            ):
                for number in range(warm_up + given.rounds):
                    for which in (0, 1) if number % 2 == 0 else (1, 0):
                        found = (first, second)[which].costs(runs, out)
                        if number >= warm_up:
                            measured[which].append(found)
            print(f"pair {pair + 1} of {given.pairs} measured", file=sys.stderr, flush=True)
    table, ratios = compared(measured, given.bench)
    Console(width=140).print(table)
    changed = [
        f"{name}: {what} {before[what]} -> {after[what]}"
        for name, before in measured[0][0].items()
        if (after := measured[1][0].get(name)) is not None
        for what in EXACT
        if what in before and what in after and before[what] != after[what]
    ]
    for line in changed:
        print(line)
    slower = [name for name, ratio in ratios.items() if given.limit is not None and ratio > given.limit]
    if slower:
        print(f"above the limit of {given.limit:g}: {'; '.join(slower)}")
    return int(bool(changed or slower))


def compared(measured: tuple[list[Costs], list[Costs]], bench: str) -> tuple[Table, dict[str, float]]:
    """Return a table of medians over the rounds, and by name the smaller of the two ratios: noise only adds."""
    table = Table(
        title=f"{FIGURE[bench]}: median over {len(measured[0])} rounds (lowest to highest)", title_justify="left"
    )
    table.add_column("", overflow="fold")
    for heading in ("before", "after", "difference", "ratio", "of the lowest"):
        table.add_column(heading, justify="right", no_wrap=True)
    ratios = {}
    for name in measured[0][0]:
        before, after = ([_figure(found[name]) for found in rounds if name in found] for rounds in measured)
        if not after:
            table.add_row(name, _spread(before), "-", "-", "-", "-")
            continue
        first, second = statistics.median(before), statistics.median(after)
        lowest = min(after) / min(before)
        ratios[name] = min(second / first, lowest)
        table.add_row(
            name,
            _spread(before),
            _spread(after),
            f"{second - first:+.4g}",
            f"{second / first:.3f}",
            f"{lowest:.3f}",
        )
    return table, ratios


def _figure(cost: dict[str, Any]) -> float:
    return 1.0 + cost["fastest"] if "fastest" in cost else float(cost["median_us"])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


if __name__ == "__main__":
    raise SystemExit(main())
