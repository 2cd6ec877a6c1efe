"""The command line that every training script has: how long, from which seed, where to."""

from __future__ import annotations

import argparse
from pathlib import Path

from attrs import frozen

TWIN_SEED = 1
"""Seed of the twins: other first weights and other batches, everything else the same."""


@frozen
class Options:
    """What the command line of a training script asked for.

    Attributes:
        iterations: end of every stage of the training.
        seed: of the first weights and of all batches.
        work: folder of the checkpoint.
        out: file of the trained weights.
    """

    iterations: list[int]
    seed: int
    work: Path
    out: Path


def parse_options(description: str | None, *, weights: Path, twin: Path, iterations: list[int]) -> Options:
    """Read the command line.

    Args:
        description: of the script.
        weights: file of the model's weights.
        twin: file of its twin's.
        iterations: default end of every stage.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--twin", action="store_true", help="train the twin: the same model from another seed")
    parser.add_argument("--iterations", type=int, nargs="+", default=iterations, help="end of every stage")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint; a training found there goes on")
    parser.add_argument("--out", type=Path, help="file of the trained weights")
    given = parser.parse_args()
    out = twin if given.twin else weights
    return Options(
        iterations=given.iterations,
        seed=TWIN_SEED if given.twin else 0,
        work=given.work or Path("training/runs") / out.stem,
        out=given.out or out,
    )
