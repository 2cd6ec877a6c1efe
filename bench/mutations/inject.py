"""Put every fault of `faults` into a copy of the package, one at a time, and see whether the suite finds it.

``python bench/mutations/inject.py`` runs those that have no line in ``bench/results/mutations.csv`` yet, two at a time,
and writes the table of ``docs/mutations.md``. A fault is caught where a test fails; a test file that cannot even be
collected tells that the fault was badly made, and is an error.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results/mutations.csv"
PAGE = ROOT / "docs/mutations.md"
BEGIN = "<!-- begin generated: make mutations -->"
END = "<!-- end generated -->"
FIELDS = ("area", "file", "fault", "caught", "by", "seconds")
_FAILED = 1
"""What pytest returns where a test failed."""


def main() -> None:
    """Run what is missing, write the table, and end with 1 where a fault was not caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="run all of them, whatever the results say")
    parser.add_argument("--only", metavar="TEXT", help="those whose file or description has this text")
    parser.add_argument("--whole", action="store_true", help="run the whole suite for each, not the named files")
    asked = parser.parse_args()
    _check()
    known = {} if asked.again else _read()
    chosen = [fault for fault in FAULTS if not asked.only or asked.only in f"{fault.path} {fault.what}"]
    waiting = [
        fault for fault in chosen if asked.only or fault.what not in known or known[fault.what]["caught"] != "yes"
    ]
    if waiting:
        _control(waiting)
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda fault: _run(fault, asked.whole), waiting):
            known[row["fault"]] = row
            _write(known)
            print(
                f"{row['caught']:>4}  {row['file']}: {row['fault']} ({row['by'] or '-'}, {row['seconds']} s)",
                flush=True,
            )
    _write(known)
    missed = [fault.what for fault in FAULTS if known.get(fault.what, {}).get("caught") != "yes"]
    print(f"{len(FAULTS) - len(missed)} of {len(FAULTS)} caught")
    for what in missed:
        print(f"not caught: {what}")
    sys.exit(1 if missed else 0)


def _check() -> None:
    """Check that every fault changes one place of a file that is there."""
    texts = [fault.what for fault in FAULTS]
    if len(set(texts)) != len(texts):
        raise SystemExit("two faults have one description")
    for fault in FAULTS:
        source = (ROOT / "src/cachepolicies" / fault.path).read_text()
        if source.count(fault.old) != 1:
            raise SystemExit(f"{fault.path}: {source.count(fault.old)} places for {fault.what!r}: {fault.old!r}")
        compile(source.replace(fault.old, fault.new), fault.path, "exec")


def _pytest(arguments: Sequence[str], fault: Fault | None) -> subprocess.CompletedProcess[str]:
    """Run tests on a copy of the package, with a fault in it or as it is."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("profiles", "pyproject.toml"):  # a source checkout is known by the latter
            (copy / name).symlink_to(ROOT / name)
        if fault is not None:
            changed = copy / "src/cachepolicies" / fault.path
            changed.write_text(changed.read_text().replace(fault.old, fault.new))
        environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        where = "import cachepolicies, sys; sys.exit(not cachepolicies.__file__.startswith(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", where, folder], env=environment, check=True, capture_output=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def _control(faults: Sequence[Fault]) -> None:
    """Check that the tests pass on a copy without a fault: what fails there would catch everything."""
    names = sorted({f"tests/{name}" for fault in faults for name in fault.tests})
    done = _pytest(["-n", "2", "--dist", "loadfile", *names], None)
    if done.returncode:
        raise SystemExit(f"without a fault the tests do not pass:\n{done.stdout[-3000:]}")
    print(f"without a fault: {done.stdout.splitlines()[-1]}", flush=True)


def _run(fault: Fault, whole: bool) -> dict[str, str]:
    began = time.monotonic()
    tests = ["tests"] if whole else [f"tests/{name}" for name in fault.tests]
    done = _pytest(["-x", *tests], fault)
    if done.returncode not in (0, _FAILED):
        raise SystemExit(
            f"{fault.what}: pytest ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    failed = next((line for line in done.stdout.splitlines() if line.startswith("FAILED ")), "")
    by = failed.removeprefix("FAILED tests/").split(" - ")[0].split("[")[0]
    return {
        "area": fault.area,
        "file": fault.path,
        "fault": fault.what,
        "caught": "yes" if done.returncode == _FAILED else "no",
        "by": by,
        "seconds": f"{time.monotonic() - began:.0f}",
    }


def _read() -> dict[str, dict[str, str]]:
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        return {row["fault"]: row for row in csv.DictReader(file)}


def _write(known: dict[str, dict[str, str]]) -> None:
    rows = [known[fault.what] for fault in FAULTS if fault.what in known]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    head = "| part | file | what goes wrong | first test that fails |\n| --- | --- | --- | --- |"
    lines = [f"| {row['area']} | `{row['file']}` | {row['fault']} | {_said(row)} |" for row in rows]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text("\n\n".join((before + BEGIN, "\n".join((head, *lines)), END)) + rest.partition(END)[2])


def _said(row: dict[str, str]) -> str:
    return f"`{row['by']}`" if row["caught"] == "yes" else "**none**"


if __name__ == "__main__":
    main()
