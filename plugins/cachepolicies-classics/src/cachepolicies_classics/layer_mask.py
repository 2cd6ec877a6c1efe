"""The mask of Learning-to-Cache: which modules second steps compute, and how that was found; as a file too."""

from __future__ import annotations

import datetime
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from attrs import asdict, field, fields, frozen

from cachepolicies import CachePoliciesError

FORMAT, VERSION = "cachepolicies-layer-mask", 1
ORIGINS = ("trained", "calibrated errors", "given")
"""How a mask was made: by training, as published; from measured errors, without training; or by somebody's hand."""

REMEDY = "make the mask again with cachepolicies_classics.trained_mask or calibrated_mask"


class MaskError(CachePoliciesError, ValueError):
    """A mask cannot be read or is not valid."""


def _rows(values: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(row) for row in values)


def _names(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _levels(values: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _dict(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values)


def _refuse(what: str, value: object, expected: str) -> NoReturn:
    text = repr(value)
    raise MaskError(f"field {what!r} is {text[:80]}, expected {expected}; {REMEDY}")


@frozen
class LayerMask:
    """Which modules the second step of each pair computes; the others give what they returned at the first.

    Attributes:
        model_class: class of the network; the mask serves this class only.
        num_steps: N, of the run. Steps 0 and 1 are the first pair; the last step of an odd number is by itself.
        places: names of all modules, as the site ``attention+mlp`` has them.
        computed: for each of the N // 2 pairs, the places that its second step computes.
        origin: ``"trained"``, ``"calibrated errors"`` or ``"given"``.
        timesteps: t of every step, in the units of the scheduler that the mask was made with; ``None`` for a mask that
            serves any run of N steps.
        weights: sha256 of the network's weights, see `cachepolicies.profiles.weights_hash`; ``None`` if not known.
        settings: numbers that it was made with, by name.
        versions: distribution name to version.
        created: UTC time in ISO 8601; left out of comparisons.
        notes: free text.

    Raises:
        MaskError: a field is of the wrong kind or does not fit the others.
    """

    model_class: str
    num_steps: int
    places: tuple[str, ...] = field(converter=_names, repr=lambda places: f"{len(places)} places")
    computed: tuple[tuple[str, ...], ...] = field(converter=_rows, repr=lambda rows: f"{sum(map(len, rows))} computed")
    origin: str = "given"
    timesteps: tuple[float, ...] | None = field(default=None, converter=_levels, repr=False)
    weights: str | None = field(default=None, repr=False)
    settings: Mapping[str, float] = field(factory=dict, converter=_dict, hash=False, repr=False)
    versions: Mapping[str, str] = field(factory=dict, converter=_dict, hash=False, repr=False)
    created: str = field(default="", eq=False, repr=False)
    notes: str = field(default="", repr=False)

    def __attrs_post_init__(self) -> None:
        for what in ("model_class", "origin", "created", "notes"):
            if not isinstance(getattr(self, what), str):
                _refuse(what, getattr(self, what), "text")
        if self.origin not in ORIGINS:
            _refuse("origin", self.origin, f"one of {', '.join(ORIGINS)}")
        if type(self.num_steps) is not int or self.num_steps < 2:
            _refuse("num_steps", self.num_steps, "an integer from 2, one pair")
        if not self.places or any(not isinstance(place, str) for place in self.places):
            _refuse("places", self.places, "the names of the modules")
        if len({*self.places}) != len(self.places):
            _refuse("places", self.places, "each name once")
        if len(self.computed) != self.num_steps // 2:
            _refuse("computed", f"of {len(self.computed)} pairs", f"a row for each of {self.num_steps // 2} pairs")
        unknown = sorted({*chain.from_iterable(self.computed)} - {*self.places})
        if unknown:
            _refuse("computed", unknown[0], "names that are among the places")
        levels = self.timesteps
        if levels is not None and (len(levels) != self.num_steps or not all(map(math.isfinite, levels))):
            _refuse("timesteps", levels, f"{self.num_steps} finite numbers, or null")
        if self.weights is not None and not isinstance(self.weights, str):
            _refuse("weights", self.weights, "a sha256, or null")
        for what, kinds in (("settings", (int, float)), ("versions", (str,))):
            for name, value in getattr(self, what).items():
                if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, kinds):
                    _refuse(f"{what}.{name}", value, "a number" if what == "settings" else "text")

    def held_at(self, step: int) -> frozenset[str]:
        """Return the places that a step does not compute."""
        pair, second = divmod(step, 2)
        return frozenset(self.places).difference(self.computed[pair]) if second else frozenset()

    @property
    def share_computed(self) -> float:
        """Part of the modules that the second steps compute, each counted as one."""
        return sum(len({*row}) for row in self.computed) / (len(self.computed) * len(self.places))


def save_mask(mask: LayerMask, path: str | Path) -> Path:
    """Write a mask as JSON; the file appears whole or not at all.

    Args:
        mask: what to write.
        path: the file, with suffix ``.json``; its folder is created.

    Returns:
        The path.

    Raises:
        MaskError: another suffix.
    """
    target = Path(path)
    if target.suffix != ".json":
        raise MaskError(f"{target}: a mask is a .json file; save it as {target.name + '.json'!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "version": VERSION, **asdict(mask)}
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=target.suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, allow_nan=False)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return target


def read_mask(path: str | Path) -> LayerMask:
    """Read a mask and check all of it.

    Args:
        path: the JSON file.

    Returns:
        The mask; equal to the one that was saved.

    Raises:
        MaskError: the file is missing, no JSON, of another format or version, lacks a key or has an unknown one, or a
            value in it is not valid. Names file, field and value.
    """
    source = Path(path)
    try:
        return _from_text(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise MaskError(f"mask {source}: cannot be read ({error}); check the path, or {REMEDY}") from error
    except (MaskError, ValueError, RecursionError) as error:
        raise MaskError(f"mask {source}: {error}") from error


def _from_text(text: str) -> LayerMask:
    raw = json.loads(text)
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise MaskError(f"field 'format' is not {FORMAT!r}: this is no mask; {REMEDY}")
    version = raw.pop("version", None)
    if version != VERSION:
        raise MaskError(
            f"field 'version' is {version!r}, {VERSION} is read; update cachepolicies-classics, or {REMEDY}"
        )
    known = {each.name for each in fields(LayerMask)}
    for what, names in (("missing", known - raw.keys()), ("unknown", raw.keys() - known)):
        if names:
            raise MaskError(f"field {sorted(names)[0]!r} is {what}; {REMEDY}")
    lists = {"places": raw["places"], "computed": raw["computed"]}
    if raw["timesteps"] is not None:
        lists["timesteps"] = raw["timesteps"]
    if isinstance(raw["computed"], list):
        lists.update({f"computed[{at}]": row for at, row in enumerate(raw["computed"])})
    for what, value in lists.items():
        if not isinstance(value, list):
            _refuse(what, value, "a list")
    kinds = (int, float)
    if any(isinstance(t, bool) or not isinstance(t, kinds) for t in raw["timesteps"] or ()):
        _refuse("timesteps", raw["timesteps"], "numbers")
    if any(not isinstance(place, str) for row in raw["computed"] for place in row):
        _refuse("computed", raw["computed"], "names of places")
    for what in ("settings", "versions"):
        if not isinstance(raw[what], dict):
            _refuse(what, raw[what], "an object")
    return LayerMask(**raw)


def made_now() -> dict[str, Any]:
    """Return the fields of a mask that say with what, and when, it was made."""
    return {
        "versions": {name: metadata.version(name) for name in ("cachepolicies", "torch")},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
