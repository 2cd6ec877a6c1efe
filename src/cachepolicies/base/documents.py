"""JSON documents of this library, profiles and plans: read strictly, written so that a person can read them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
import cattrs
from attrs import frozen

from cachepolicies.base.files import check_writable, read_file, write_atomically
from cachepolicies.base.settings import shown

T = TypeVar("T")


@frozen
class DocumentFormat:
    """A kind of document: one record, one JSON file, which says its format and version.

    Attributes:
        noun: what a message calls it, ``"profile"``.
        name: value of ``format`` in the file.
        version: value of ``version`` that is written, and read.
        older: versions that are read as well.
        error: what is raised for a document that is not valid.
        again: what makes a new one, ``"calibrate again"``.
        remedy: the same with the command, for the end of a message.
    """

    noun: str
    name: str
    version: int
    error: type[Exception]
    again: str
    remedy: str
    older: tuple[int, ...] = ()

    def target(self, path: str | Path) -> Path:
        """Return the path of a file to write; its folder is created.

        Raises:
            Exception: ``error``, for another suffix than ``.json``, or where nothing can be written.
        """
        target = Path(path)
        if target.suffix != ".json":
            raise self.error(f"{target}: a {self.noun} is a .json file; save it as {target.name + '.json'!r}")
        try:
            check_writable(target)
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.error(f"{target} cannot be written ({error}); choose another place") from error
        return target

    def write(self, document: dict[str, Any], target: Path) -> None:
        """Write the fields of a record; the file appears whole or not at all."""
        write_atomically(target, self.text(document).encode())

    def text(self, document: dict[str, Any]) -> str:
        """Return the fields of a record as the text of a file."""
        return dump({"format": self.name, **document})

    @contextlib.contextmanager
    def naming(self, source: Path) -> Iterator[None]:
        """Put the document's name in front of what is raised inside."""
        try:
            yield
        except self.error as error:
            raise self.error(f"{self.noun} {source}: {error}") from error.__cause__

    def raw(self, source: Path) -> dict[str, Any]:
        """Return the object that a file holds, whatever its format.

        Raises:
            Exception: ``error``: the file is missing, cannot be read, or holds no JSON object.
        """
        try:
            raw = json.loads(read_file(source), object_pairs_hook=_once_each, parse_int=_integer)
        except FileNotFoundError as error:
            raise self.error(f"no such file; check the path, or {self.remedy}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise self.error(f"cannot be read ({error}); check that it is a {self.noun}'s JSON file") from error
        except json.JSONDecodeError as error:
            raise self.error(
                f"not valid JSON at line {error.lineno} ({error.msg}): truncated or damaged; fetch or copy it again, "
                f"or {self.remedy}"
            ) from error
        except (_DamagedError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise self.error(f"not valid: {why}; {self.remedy}") from error
        if not isinstance(raw, dict):
            raise self.error(f"holds a {type(raw).__name__}, not an object; {self.remedy}")
        return raw

    def fields(self, source: Path) -> dict[str, Any]:
        """Return the fields of a document of this format, of any version that is read.

        Raises:
            Exception: ``error``: as `raw`, or the file says another format or version.
        """
        raw = self.raw(source)
        if raw.pop("format", None) != self.name:
            raise self.error(f"field 'format' is not {self.name!r}: this is no {self.noun}; {self.remedy}")
        self.check_version(raw.get("version"), self.older)
        return raw

    def check_version(self, version: object, older: tuple[int, ...] = ()) -> None:
        """Check the version that a record, or a file, says.

        Args:
            version: what it says.
            older: further versions that it may say.

        Raises:
            Exception: ``error``: it is none of them.
        """
        read = (*older, self.version)
        if version not in read:
            raise self.error(
                f"field 'version' is {version!r}, this library reads {' and '.join(map(str, read))}; "
                f"update cachepolicies, or {self.again}"
            )

    def check_complete(self, raw: dict[str, Any], record: type[Any]) -> None:
        """Check that no field of a record is missing: a default would hide a damaged file.

        Raises:
            Exception: ``error``: one is; names all that are.
        """
        missing = sorted({a.name for a in attrs.fields(record)} - raw.keys())
        if missing:
            raise self.error(f"field {missing[0]!r} is missing (in all: {', '.join(missing)}); {self.remedy}")

    def structured(self, raw: dict[str, Any], record: type[T], converter: cattrs.Converter) -> T:
        """Return the record that the fields make.

        Raises:
            Exception: ``error``: a value is not valid, or a key is unknown; names every such field.
        """
        try:
            return converter.structure(raw, record)
        except Exception as error:
            # cattrs raises groups of whatever the hooks and the records raise; all of it means a bad file
            problems = cattrs.transform_error(error, path="field", format_exception=_problem)
            raise self.error(f"{'; '.join(problems)}; {self.remedy}") from error


class _DamagedError(Exception):
    """JSON that Python would read, and nobody wrote."""


_MOST_DIGITS = 20
"""Of an integer: more than 64 bits have."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DamagedError(f"the key {twice!r} stands twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise _DamagedError(f"an integer of {len(digits)} digits")
    return int(digits)


def strict_converter(error: type[Exception]) -> cattrs.Converter:
    """Return a converter that converts nothing: cattrs by itself would read "8" and 8.7 as the integer 8.

    Args:
        error: what is raised for a number or a text of another type; unknown keys are refused by cattrs itself.
    """
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, accepted in ((int, (int,)), (float, (int, float)), (str, (str,))):
        converter.register_structure_hook(kind, _strict(kind, accepted, error))
    return converter


def dump(document: dict[str, Any]) -> str:
    """Return the document as JSON, rows of numbers on one line each: readable, and a diff stays small."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    # no string holds a raw line break
    return re.sub(r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]", lambda row: "[" + re.sub(r",\s+", ", ", row[1]) + "]", text) + "\n"


def _problem(error: BaseException, _type: type | None) -> str:
    """Say what is wrong with a document, for `cattrs.transform_error`."""
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing"
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"unknown key {sorted(error.extra_fields)[0]!r}"
    return str(error)


def _strict(kind: type, accepted: tuple[type, ...], refusal: type[Exception]) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise refusal(f"{shown(value)} is a {type(value).__name__}, expected {kind.__name__}")
        return kind(value)

    return structure
