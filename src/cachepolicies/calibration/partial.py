"""Unfinished calibrations on disk: one file per finished batch, and a list of them that says what they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from attrs import frozen

from cachepolicies.base.errors import ProfileError
from cachepolicies.base.files import write_atomically
from cachepolicies.calibration.measure import BatchMeasurements

FORMAT = "cachepolicies-calibration-partial"
INDEX = "partial.json"

_ARRAYS = ("alpha_x", "alpha_t", "rho", "weight", "displacement", "change")
_BLOCKS = "blocks/"
"""Prefix of the arrays that were measured at the block stack."""


@frozen
class PartialResults:
    """Finished batches of one calibration in a folder.

    A batch counts once the index names it, and the index is replaced atomically after the batch's own file is on disk:
    an interruption at any point costs the batch in progress and nothing else.

    Attributes:
        folder: where; created at the first batch.
        settings: everything that the numbers depend on, plain JSON. Not the batch size, on which they do not.
    """

    folder: Path
    settings: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The sha256 of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def read(self) -> list[BatchMeasurements]:
        """Return the finished batches in order, none if nothing was written yet.

        Raises:
            ProfileError: the folder belongs to a calibration with other settings, or is damaged.
        """
        entries = self._entries()
        batches = [self._read_batch(entry) for entry in entries]
        expected = 0
        for batch in batches:
            if batch.start != expected or batch.stop <= batch.start:
                raise self._damaged(f"batch of samples {batch.start} to {batch.stop} where {expected} comes next")
            expected = batch.stop
        return batches

    def add(self, batch: BatchMeasurements) -> None:
        """Write a finished batch."""
        entries = self._entries()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"samples-{batch.start:05d}-{batch.stop:05d}.safetensors"
        arrays = {key: getattr(batch, key) for key in _ARRAYS} | {f"{_BLOCKS}{k}": a for k, a in batch.blocks.items()}
        content = safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        write_atomically(self.folder / name, content)
        entry = {
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "start": batch.start,
            "stop": batch.stop,
        }
        index = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "batches": [*entries, entry],
        }
        write_atomically(self.folder / INDEX, json.dumps(index, indent=1).encode())

    def _entries(self) -> list[dict[str, Any]]:
        path = self.folder / INDEX
        if self.folder.exists() and not self.folder.is_dir():
            raise ProfileError(f"checkpoint {self.folder}: is a file; give a folder, which need not exist yet")
        if not path.exists():
            return []
        try:
            index = json.loads(path.read_bytes())
        except ValueError as error:
            raise self._damaged(f"{INDEX} is not valid JSON ({error})") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise self._damaged(f"{INDEX} does not have format {FORMAT!r}")
        if index.get("fingerprint") != self.fingerprint:
            theirs = index.get("settings") or {}
            names = sorted(n for n in {*theirs, *self.settings} if theirs.get(n) != self.settings.get(n))
            differences = "; ".join(
                f"{n}: {_brief(theirs.get(n))} there, {_brief(self.settings.get(n))} here" for n in names
            )
            raise ProfileError(
                f"checkpoint {self.folder}: belongs to a calibration with other settings ({differences}); "
                "give another folder, or clear this one with cachepolicies.calibration.clear_checkpoint"
            )
        entries = index.get("batches")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._damaged(f"{INDEX} has no list of batches")
        return entries

    def _read_batch(self, entry: dict[str, Any]) -> BatchMeasurements:
        name, start, stop = entry.get("file"), entry.get("start"), entry.get("stop")
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not isinstance(start, int)
            or not isinstance(stop, int)
        ):
            raise self._damaged(f"{INDEX} has the batch {entry!r}")
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise self._damaged(f"{name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            raise self._damaged(f"{name} has not the sha256 that {INDEX} says")
        try:
            arrays = safetensors.numpy.load(content)
            blocks = {key.removeprefix(_BLOCKS): a for key, a in arrays.items() if key.startswith(_BLOCKS)}
            return BatchMeasurements(start=start, stop=stop, blocks=blocks, **{key: arrays[key] for key in _ARRAYS})
        except (safetensors.SafetensorError, KeyError) as error:
            raise self._damaged(f"{name} lacks its arrays ({error})") from error

    def _damaged(self, what: str) -> ProfileError:
        return ProfileError(
            f"checkpoint {self.folder}: {what}: damaged; clear it with "
            "cachepolicies.calibration.clear_checkpoint and calibrate again"
        )


def clear_checkpoint(folder: str | Path) -> None:
    """Delete the files of a checkpoint, and its folder if nothing else is in it."""
    place = Path(folder)
    for path in (*place.glob("samples-*.safetensors"), place / INDEX):
        path.unlink(missing_ok=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
