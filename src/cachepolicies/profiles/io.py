"""One profile, one JSON file; large tables in a safetensors file of the same stem beside it.

The field ``tables`` of the JSON is null without tables. For a measured profile it names the safetensors file, with its
sha256 and the shapes. For a published one it holds the tables themselves, small and to be read by people:
``{"inline": {name: {"shape": [...], "dtype": "float64", "values": [...]}}}``, the values in C order.

Version 2 added the fields ``origin``, ``stated_steps``, ``polynomials``, ``settings``, ``recommended``, ``source`` and
``irregularities``, the value null in what a published profile does not know, and inline tables. A file of version 1 has
none of them and is read as a measured profile without; it is written again as version 2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
import numpy as np
import safetensors
import safetensors.numpy
from cattrs.gen import make_dict_unstructure_fn, override

from cachepolicies._documents import dump, problem, strict_converter
from cachepolicies._errors import ProfileError
from cachepolicies.profiles.schema import FORMAT_VERSION, RECALIBRATE, Array, Profile

OLD_VERSION = 1
"""The earlier version that is still read."""

_NEW_FIELDS: Mapping[str, Any] = {
    "origin": "measured",
    "stated_steps": None,
    "polynomials": {},
    "settings": {},
    "recommended": [],
    "source": {},
    "irregularities": [],
}
"""What a file of the earlier version says without saying it."""

FORMAT = "cachepolicies-profile"
"""Value of ``format`` in the JSON file."""

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
    target = Path(path)
    if target.suffix != ".json":
        raise ProfileError(f"{target}: a profile is a .json file; save it as {target.name + '.json'!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".safetensors")
    document: dict[str, Any] = {"format": FORMAT, **_converter().unstructure(profile)}
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
    write_atomically(target, dump(document).encode())
    if stale and not apart:
        beside.unlink()
    return target


def read_profile(path: str | Path) -> Profile:
    """Read a profile of this version or of version 1, and check all of it.

    Args:
        path: the JSON file.

    Returns:
        The profile; equal to the one that was saved.

    Raises:
        ProfileError: the file is missing, truncated, of another format or version, lacks a key or has an unknown one,
            or a value in it or in the tables beside it is not valid. Names file, field and value.
    """
    source = Path(path)
    raw = _read_json(source)
    try:
        if raw.pop("format", None) != FORMAT:
            raise ProfileError(f"field 'format' is not {FORMAT!r}: this is no profile; {RECALIBRATE}")
        if raw.get("version") == OLD_VERSION:
            raw = _from_old_version(raw)
        if raw.get("version") != FORMAT_VERSION:
            raise ProfileError(
                f"field 'version' is {raw.get('version')!r}, this library reads {OLD_VERSION} and {FORMAT_VERSION}; "
                "update cachepolicies, or calibrate again"
            )
        missing = sorted({a.name for a in attrs.fields(Profile)} - raw.keys())
        if missing:
            raise ProfileError(f"field {missing[0]!r} is missing (in all: {', '.join(missing)}); {RECALIBRATE}")
        raw["tables"] = _read_tables(source, raw["tables"])
        try:
            return _converter().structure(raw, Profile)
        except Exception as error:
            # cattrs raises groups of whatever the hooks and the records raise; all of it means a bad file
            problems = cattrs.transform_error(error, path="field", format_exception=problem)
            raise ProfileError(f"{'; '.join(problems)}; {RECALIBRATE}") from error
    except ProfileError as error:
        raise ProfileError(f"profile {source}: {error}") from error.__cause__


def is_profile(path: Path) -> bool:
    """Whether a JSON file says that it is a profile; an unreadable file is none."""
    try:
        return _read_json(path).get("format") == FORMAT
    except ProfileError:
        return False


def tables_file(path: Path) -> str | None:
    """Return the name of the tables file that a profile's JSON refers to, None if it has no tables or holds them.

    Raises:
        ProfileError: the JSON cannot be read, or the reference is not the name of a file beside it.
    """
    reference = _read_json(path).get("tables")
    if reference is None or _is_inline(reference):
        return None
    return _tables_name(reference, path.with_suffix(".safetensors").name)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that a reader sees the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's 0600 would hide the file from colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ProfileError(f"profile {path}: no such file; check the path, or {RECALIBRATE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            f"profile {path}: cannot be read ({error}); check that it is a profile's JSON file"
        ) from error
    except json.JSONDecodeError as error:
        raise ProfileError(
            f"profile {path}: not valid JSON at line {error.lineno} ({error.msg}): truncated or damaged; "
            "fetch or copy it again"
        ) from error
    if not isinstance(raw, dict):
        raise ProfileError(f"profile {path}: holds a {type(raw).__name__}, not an object; {RECALIBRATE}")
    return raw


def _tables_name(reference: Any, expected: str) -> str:
    name = reference.get("file") if isinstance(reference, dict) else None
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ProfileError(f"field 'tables.file' is {name!r}, expected the name of a file beside it, as {expected!r}")
    return name


def _from_old_version(raw: dict[str, Any]) -> dict[str, Any]:
    early = [name for name in _NEW_FIELDS if name in raw]
    if early:
        raise ProfileError(f"field {early[0]!r} is not part of version {OLD_VERSION} of the format; {RECALIBRATE}")
    return {**raw, **_NEW_FIELDS, "version": FORMAT_VERSION}


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
        try:
            array = np.array(table["values"], dtype=table["dtype"]).reshape(table["shape"])
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
        content = path.read_bytes()
    except OSError as error:
        raise ProfileError(
            f"the tables file {path} of field 'tables.file' cannot be read ({error.strerror}); "
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
def _converter() -> cattrs.Converter:
    converter = strict_converter(ProfileError)
    converter.register_structure_hook_func(_is_array, _structure_array)
    converter.register_structure_hook_func(_is_plain_mapping, lambda value, _: value)  # checked by the records
    converter.register_unstructure_hook_func(_is_array, lambda array: array.tolist())
    converter.register_unstructure_hook(
        Profile, make_dict_unstructure_fn(Profile, converter, tables=override(omit=True))
    )
    return converter


def _is_array(kind: Any) -> bool:
    return kind is np.ndarray or getattr(kind, "__origin__", None) is np.ndarray


def _is_plain_mapping(kind: Any) -> bool:
    return kind in (Mapping[str, Any], Mapping[str, Mapping[str, Any]])
