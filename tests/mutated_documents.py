"""Damaged and hostile profiles and plans: each is read as a valid object or refused by an error of this library.

``make mutated`` tries 10 000, and says which took long, much memory, or raised something else. A document is damaged
by one to three mutations: values that nobody wrote, missing, repeated or foreign keys, truncated or flipped bytes,
nesting, tables that do not belong to it.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen
from rich.console import Console

from cachepolicies import load_profile
from cachepolicies.base.errors import CachePoliciesError
from cachepolicies.planning import plan, read_plan, save_plan
from cachepolicies.planning.summary import summarise_plan
from cachepolicies.profiles.io import read_profile
from cachepolicies.profiles.load import shipped_profiles
from cachepolicies.profiles.summary import summarise

PLAIN = ("video-dit", "flux.1-dev", "cogvideox-5b")
"""Profiles that are damaged: a measured one with tables beside it, and published ones."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    10**19,
    10**30,
    "",
    "x" * 5000,
    "\x00",
    "\ud800",
    "\x1b[31m",
    "[/red]",
    "[bold]",
    "\u202e",
    "S1000000000",
    "U500000000",
    "../../etc/passwd",
    "/dev/zero",
    [],
    {},
    [[]],
    [1, "a", None],
    {"a": {"b": []}},
    [0.5] * 3000,
    {"inline": {"magnitude_ratio": {"shape": [10**9], "dtype": "float64", "values": [1]}}},
    {"inline": {"magnitude_ratio": {"shape": [1], "dtype": "U500000000", "values": ["a"]}}},
)


@frozen
class Damaged:
    """A document that lies in a folder, damaged.

    Attributes:
        path: of its JSON file.
        is_plan: whether it was a plan, and not a profile.
    """

    path: Path
    is_plan: bool

    def tried(self) -> tuple[bool, str | None]:
        """Read the document, and print what was read.

        Returns:
            Whether it was read, and what is wrong with that or with the refusal, ``None`` if nothing.
        """
        shown = self.path.with_name("shown")
        try:
            with shown.open("w", errors="replace") as file:
                made: Any = read_plan(self.path) if self.is_plan else read_profile(self.path)
                Console(file=file).print(summarise_plan(made) if self.is_plan else summarise(made))
        except CachePoliciesError as error:
            text = str(error)
            long = len(text) > 2300
            return False, f"a message of {len(text)} characters" if long else _obeyed(text)
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"[:200]
        return True, _obeyed(shown.read_text(errors="replace"))


def _obeyed(text: str) -> str | None:
    return "an escape sequence reached the terminal" if "\x1b" in text else None


def damaged(seed: int, folder: Path) -> Damaged:
    """Damage one document, and put it into an empty folder, with its tables."""
    chance = random.Random(seed)
    is_plan = chance.random() < 0.3
    path = folder / "document.json"
    path.write_bytes(_damaged_text(chance, *_original(chance, folder, is_plan)))
    return Damaged(path, is_plan)


@cache
def _plan_text() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return save_plan(plan(load_profile("video-dit"), budget=20), Path(folder) / "plan.json").read_text()


def _original(chance: random.Random, folder: Path, reads_plan: bool) -> tuple[str, bool]:
    """Return the text of a sound document, its tables beside the place where it will lie."""
    if reads_plan:
        return _plan_text(), False
    name = chance.choice(PLAIN)
    source = shipped_profiles()[name]
    beside = source.with_suffix(".safetensors")
    if beside.exists() and chance.random() < 0.6:
        shutil.copy(beside, folder / beside.name)
        if chance.random() < 0.2:
            content = bytearray((folder / beside.name).read_bytes())
            content[chance.randrange(len(content))] ^= 0xFF
            (folder / beside.name).write_bytes(content)
        return source.read_text(), True
    document = json.loads(source.read_text())
    if beside.exists():
        document["tables"] = None
        document["trials"] = []
    return json.dumps(document), True


def _damaged_text(chance: random.Random, text: str, of_profile: bool) -> bytes:
    for _ in range(chance.randint(1, 3)):
        kind = chance.random()
        if kind < 0.75:
            document = json.loads(text)
            _damage(chance, document)
            text = json.dumps(document)
        elif kind < 0.80:
            text = text[: chance.randrange(len(text))]
            break
        elif kind < 0.85:
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice('{}[]",:0eE-.\x00\x1bn') + text[at + 1 :]
            break
        elif kind < 0.90:
            deep = chance.choice((100, 990, 5000))
            text = text.rstrip()[:-1] + ',"x":' + "[" * deep + "]" * deep + "}"
            break
        elif kind < 0.95:
            text = text.rstrip()[:-1] + ',"version":' + "9" * chance.choice((3, 19, 25, 4301)) + "}"
            break
        else:
            text = text.rstrip()[:-1] + ',"notes":"twice"}'
            break
    return text.encode("utf-8", "surrogatepass")


def _damage(chance: random.Random, document: Any) -> None:
    """Change one place of a document."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for number, (key, item) in enumerate(list(entries)):
            places.append((value, key))
            if number < 40:
                walk(item)

    walk(document)
    holder, key = chance.choice(places)
    how = chance.random()
    if how < 0.6:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif how < 0.75:
        del holder[key]
    elif how < 0.85 and isinstance(holder, dict):
        holder[chance.choice(("unknown", "", "\x1b[2J", "a" * 5000))] = holder[key]
    elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * chance.choice((-1, 1e20, 1e-20, 1e200))
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]]
