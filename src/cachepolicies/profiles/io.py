"""One profile, one JSON file; large tables in a safetensors file of the same stem beside it.

The field ``tables`` of the JSON is null without tables. For a measured profile it names the safetensors file, with its
sha256 and the shapes. For a published one it holds the tables themselves, small and to be read by people:
``{"inline": {name: {"shape": [...], "dtype": "float64", "values": [...]}}}``, the values in C order.

Version 2 added the fields ``origin``, ``stated_steps``, ``polynomials``, ``settings``, ``recommended``, ``source`` and
``irregularities``, the value null in what a published profile does not know, and inline tables. A file of version 1 has
none of them and is read as a measured profile without. Version 3 added the field ``trials``. A file of an earlier
version is written again as version 3.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import cattrs
import numpy as np
import safetensors
import safetensors.numpy
from cattrs.gen import make_dict_unstructure_fn, override

from cachepolicies.base.documents import strict_converter
from cachepolicies.base.errors import ProfileError
from cachepolicies.base.files import read_file, write_atomically
from cachepolicies.base.settings import shown
from cachepolicies.profiles.checks import check_choice
from cachepolicies.profiles.format import PROFILE, RECALIBRATE, Array, Origin
from cachepolicies.profiles.measured import Profile
from cachepolicies.profiles.published import PublishedProfile

_NEW_FIELDS: Mapping[int, Mapping[str, Any]] = {
    2: {
        "origin": "measured",
        "stated_steps": None,
        "polynomials": {},
        "settings": {},
        "recommended": [],
        "source": {},
        "irregularities": [],
    },
    3: {"trials": []},
}
"""What each version added: a file of an earlier one says this without saying it."""

_RECORDS: Mapping[Origin, type[Profile]] = {"measured": Profile, "published": PublishedProfile}
"""The record that a file with this ``origin`` holds."""

_INLINE = ("float64", "float32", "int64", "int32")
"""Kinds of numbers that a table inside a JSON file may have."""

TABLES_FORMAT = "cachepolicies-profile-tables"
"""Value of ``format`` in the metadata of the safetensors file."""


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write a profile; each file appears whole or not at all.

    Args:
        profile: what to write.
        path: the JSON file, with suffix ``.json``; its folder is created. The tables of a measured profile go into
            the file of the same stem with suffix ``.safetensors``, whose sha256 the JSON holds; those of a published
            one into the JSON.

    Returns:
        The path of the JSON file.

    Raises:
        ProfileError: another suffix, or the safetensors file exists and is not a profile's (model weights, say).
    """
    target = PROFILE.target(path)
    beside = target.with_suffix(".safetensors")
    document: dict[str, Any] = _profile_converter().unstructure(profile)
    stale = beside.exists() and _is_tables_file(beside)
    apart = bool(profile.tables) and profile.origin == "measured"
    if apart:
        if beside.exists() and not stale:
            raise ProfileError(
                f"{beside}: would be overwritten, but does not hold the tables of a profile; choose another name"
            )
        arrays = {name: np.ascontiguousarray(table) for name, table in profile.tables.items()}
        content = safetensors.numpy.save(arrays, metadata={"format": TABLES_FORMAT})
        document["tables"] = {
            "file": beside.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in sorted(arrays.items())},
        }
        write_atomically(beside, content)
    else:
        inline = {name: _inline(table) for name, table in sorted(profile.tables.items())}
        document["tables"] = {"inline": inline} if inline else None
    PROFILE.write(document, target)
    if stale and not apart:
        beside.unlink()
    return target


def profile_as_json(profile: Profile) -> str:
    """Return a profile as JSON text, of its tables the shapes only."""
    document: dict[str, Any] = _profile_converter().unstructure(profile)
    shapes = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in sorted(profile.tables.items())}
    return PROFILE.text({**document, "tables": shapes})


def read_profile(path: str | Path) -> Profile:
    """Read a profile of this version or an earlier one, and check all of it.

    Args:
        path: the JSON file.

    Returns:
        The profile; equal to the one that was saved.

    Raises:
        ProfileError: the file is missing, truncated, of another format or version, lacks a key or has an unknown one,
            or a value in it or in the tables beside it is not valid. Names file, field and value.
    """
    source = Path(path)
    with PROFILE.naming(source):
        raw = PROFILE.fields(source)
        if raw["version"] in PROFILE.older:
            raw = _from_earlier(raw)
        PROFILE.check_complete(raw, Profile)
        raw["tables"] = _read_tables(source, raw["tables"])
        origin = raw.pop("origin")
        check_choice("origin", origin, tuple(_RECORDS))
        return PROFILE.structured(raw, _RECORDS[origin], _profile_converter())


def is_profile(path: Path) -> bool:
    """Whether a JSON file says that it is a profile; an unreadable file is none."""
    try:
        return PROFILE.raw(path).get("format") == PROFILE.name
    except ProfileError:
        return False


def tables_file(path: Path) -> str | None:
    """Return the name of the tables file that a profile's JSON refers to, None if it has no tables or holds them.

    Raises:
        ProfileError: the JSON cannot be read, or the reference is not the name of a file beside it.
    """
    with PROFILE.naming(path):
        reference = PROFILE.raw(path).get("tables")
        if reference is None or _is_inline(reference):
            return None
        return _tables_name(reference, path.with_suffix(".safetensors").name)


def _tables_name(reference: Any, expected: str) -> str:
    name = reference.get("file") if isinstance(reference, dict) else None
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ProfileError(f"field 'tables.file' is {name!r}, expected the name of a file beside it, as {expected!r}")
    return name


def _from_earlier(raw: dict[str, Any]) -> dict[str, Any]:
    new = {
        name: value for added, fields in _NEW_FIELDS.items() if added > raw["version"] for name, value in fields.items()
    }
    early = [name for name in new if name in raw]
    if early:
        raise ProfileError(f"field {early[0]!r} is not part of version {raw['version']} of the format; {RECALIBRATE}")
    return {**raw, **new, "version": PROFILE.version}


def _is_inline(reference: Any) -> bool:
    return isinstance(reference, dict) and "inline" in reference


def _inline(table: Array) -> dict[str, Any]:
    return {"shape": list(table.shape), "dtype": str(table.dtype), "values": table.reshape(-1).tolist()}


def _read_inline(tables: Any) -> dict[str, Array]:
    if not isinstance(tables, dict):
        raise ProfileError(f"field 'tables.inline' is a {type(tables).__name__}, not an object; {RECALIBRATE}")
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or table.keys() != {"shape", "dtype", "values"}:
            raise ProfileError(f"field 'tables.inline.{name}' has not exactly the keys shape, dtype and values")
        dtype, shape = table["dtype"], table["shape"]
        if dtype not in _INLINE:
            raise ProfileError(
                f"field 'tables.inline.{name}' has dtype {shown(dtype)}, expected one of {', '.join(_INLINE)}; "
                f"{RECALIBRATE}"
            )
        if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
            raise ProfileError(f"field 'tables.inline.{name}' has shape {shown(shape)}, expected sizes; {RECALIBRATE}")
        try:
            array = np.array(table["values"], dtype=dtype).reshape(shape)
        except (TypeError, ValueError, OverflowError) as error:
            raise ProfileError(f"field 'tables.inline.{name}' is no table ({error}); {RECALIBRATE}") from error
        found[name] = array
    return found


def _read_tables(source: Path, reference: Any) -> dict[str, Array]:
    if reference is None:
        return {}
    if _is_inline(reference):
        if reference.keys() != {"inline"}:
            raise ProfileError(f"field 'tables' has 'inline' and other keys: {sorted(reference)}; {RECALIBRATE}")
        return _read_inline(reference["inline"])
    path = source.with_name(_tables_name(reference, source.with_suffix(".safetensors").name))
    unknown = reference.keys() - {"file", "sha256", "arrays"}
    if unknown:
        raise ProfileError(f"field 'tables' has the unknown key {sorted(unknown)[0]!r}; {RECALIBRATE}")
    try:
        content = read_file(path)
    except OSError as error:
        raise ProfileError(
            f"the tables file {path} of field 'tables.file' cannot be read ({error.strerror or error}); "
            "put it beside the JSON file"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != reference.get("sha256"):
        raise ProfileError(
            f"the tables file {path} has sha256 {digest}, field 'tables.sha256' says {reference.get('sha256')!r}: "
            "damaged, or of another profile; fetch or copy both files again"
        )
    try:
        arrays = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that numpy lacks
        raise ProfileError(f"the tables file {path} is not valid safetensors ({error}); {RECALIBRATE}") from error
    found = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()}
    if found != reference.get("arrays"):
        raise ProfileError(
            f"the tables file {path} holds {found}, field 'tables.arrays' says {reference.get('arrays')}"
        )
    return arrays


def _is_tables_file(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format") == TABLES_FORMAT
    except (safetensors.SafetensorError, OSError):
        return False


def _structure_array(value: Any, _: Any) -> Any:
    return value  # lists of a curve, arrays of a table: both are checked by the records themselves


@functools.cache
def _profile_converter() -> cattrs.Converter:
    converter = strict_converter(ProfileError)
    converter.register_structure_hook_func(_is_array, _structure_array)
    converter.register_structure_hook_func(_is_plain_mapping, lambda value, _: value)  # checked by the records
    converter.register_structure_hook_func(_is_optional_array, _structure_array)
    converter.register_unstructure_hook_func(_is_array, lambda array: array.tolist())
    converter.register_unstructure_hook_func(
        _is_optional_array, lambda array: None if array is None else array.tolist()
    )
    for record in _RECORDS.values():
        as_dict = make_dict_unstructure_fn(
            record, converter, _cattrs_include_init_false=True, tables=override(omit=True)
        )
        converter.register_unstructure_hook(record, as_dict)
    return converter


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or getattr(kind, "__origin__", None) is np.ndarray


def _is_optional_array(kind: Any) -> bool:
    return type(None) in (parts := get_args(kind)) and any(_is_array(part) for part in parts)


def _is_plain_mapping(kind: Any) -> bool:
    return kind in (Mapping[str, Any], Mapping[str, Mapping[str, Any]])
