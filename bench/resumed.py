"""A study that goes on where it stopped: one CSV, rows of one model after another."""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, fields


def run(
    description: str | None, row: type[Any], models: Sequence[str], results: Path, measure: Callable[[str], list[Any]]
) -> None:
    """Measure the models that have no rows yet, all or those that the command line names.

    Args:
        description: for ``--help``.
        row: attrs class of the rows, with a field ``model``.
        models: where none is named.
        results: the CSV file where ``--out`` names no other.
        measure: rows of a model, named as a function of the reference workloads.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=models)
    parser.add_argument("--out", type=Path, default=results)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(row)]
    done: set[str] = set()
    if arguments.out.exists():
        with arguments.out.open(newline="") as file:
            done = {entry["model"] for entry in csv.DictReader(file)}
    else:
        with arguments.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(names)
    for model in arguments.models:
        if model.replace("_", "-") in done:
            continue
        started = time.monotonic()
        with torch.no_grad():
            found = measure(model)
        with arguments.out.open("a", newline="") as file:
            csv.DictWriter(file, names, lineterminator="\n").writerows(asdict(entry) for entry in found)
        print(f"{model}: {time.monotonic() - started:.0f} s", flush=True)
