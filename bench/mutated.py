"""Damaged profiles and plans, ten thousand of them: each read or refused, within a second and 200 MB.

``python bench/mutated.py [COUNT] [--first SEED]``; ``make test`` reads three hundred of them, without a clock.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutated_documents import damaged  # type: ignore[import-not-found]  # of the tests

SECONDS, MEGABYTES = 1.0, 200.0


def main() -> int:
    """Try them, and return 1 if any went wrong."""
    parser = argparse.ArgumentParser(description="Read damaged profiles and plans.")
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    given = parser.parse_args()
    warnings.simplefilter("error")
    wrong = valid = 0
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as name:
        for seed in range(given.first, given.first + given.count):
            folder = Path(name) / str(seed % 10)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            document = damaged(seed, folder)
            before, start = _peak(), time.perf_counter()
            read, problem = document.tried()
            seconds, grown = time.perf_counter() - start, _peak() - before
            slowest, largest, valid = max(slowest, seconds), max(largest, grown), valid + read
            if problem is None and (seconds > SECONDS or grown > MEGABYTES):
                problem = f"{seconds:.1f} s and {grown:.0f} MB"
            if problem is not None:
                wrong += 1
                print(f"seed {seed}: {problem}")
    print(
        f"{given.count} documents: {valid} read, {given.count - valid} refused, {wrong} of them wrongly; "
        f"{slowest:.2f} s and {largest:.0f} MB at most"
    )
    return int(wrong > 0)


def _peak() -> float:
    """Return the most memory that the process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
