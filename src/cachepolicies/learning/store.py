"""Where learned profiles are kept: one folder each, in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

from cachepolicies.base.errors import CacheWarning, ProfileError
from cachepolicies.base.timesteps import slack_of
from cachepolicies.learning.subject import Subject
from cachepolicies.profiles.io import read_profile, save_profile
from cachepolicies.profiles.schema import Profile

HOME = "CACHEPOLICIES_HOME"
"""Environment variable with the folder to use instead of the user's cache folder."""

FILE = "profile.json"


def default_folder() -> Path:
    """Return where learned profiles are kept unless a call says otherwise."""
    given = os.environ.get(HOME)
    if given:
        return Path(given).expanduser() / "learned"
    from platformdirs import user_cache_path

    return user_cache_path("cachepolicies", appauthor=False) / "learned"


@define(eq=False)
class LearnedProfiles:
    """Profiles that were learned, by what they are about.

    A profile appears in the folder whole or not at all, also where two processes learn the same at once: it is written
    beside its place and moved there. What this process has learned is kept in memory too, so that a folder that cannot
    be written costs nothing but the next process's first run.

    Attributes:
        folder: created when the first profile is kept; ``None`` to keep nothing on disk.
    """

    folder: Path | None = None
    _known: dict[str, Profile] = field(factory=dict, init=False, repr=False)
    _passed_over: set[str] = field(factory=set, init=False, repr=False)
    _warned: set[str] = field(factory=set, init=False, repr=False)

    def of_run(self, subject: Subject, timesteps: tuple[float, ...]) -> Profile | None:
        """Return the profile of runs with these timesteps, ``None`` if nothing was learned of them."""
        name = subject.of_run(timesteps)
        if name not in self._known and self.folder is not None and subject.identified:
            self._read(self.folder / name)
        return self._known.get(name)

    def begun_at(self, subject: Subject, first_t: float) -> Profile | None:
        """Return the profile of runs that begin at this t; of several, the one that was learned last."""
        prefix = subject.digest
        if self.folder is not None and subject.identified:
            for place in sorted(self.folder.glob(f"{prefix}*"), key=_age):
                if place.name not in self._known:
                    self._read(place)
        for name, profile in reversed(self._known.items()):
            if (
                name.startswith(prefix)
                and name not in self._passed_over
                and abs(profile.timesteps[0] - first_t) <= slack_of([first_t])
            ):
                return profile
        return None

    def keep(self, subject: Subject, profile: Profile, timesteps: tuple[float, ...] | None = None) -> None:
        """Keep a profile, in memory and in the folder, for runs with these timesteps; the profile's own if ``None``.

        Where the folder cannot be written, a warning says so once and the profile serves this process alone. A model
        that cannot be told from others is kept in memory only.
        """
        name = subject.of_run(timesteps or profile.timesteps)
        self._passed_over.discard(name)
        self._known.pop(name, None)  # the one that was learned last stands last
        self._known[name] = profile
        if self.folder is None or not subject.identified:
            return
        try:
            self._write(self.folder / name, profile)
        except OSError as error:
            self._warn(
                f"what was learned could not be kept in {self.folder} ({error.strerror or error}); it serves this "
                f"process only. Give another folder: learn=..., or the environment variable {HOME}"
            )

    def pass_over(self, subject: Subject, profile: Profile) -> None:
        """Expect its timesteps no more of an undeclared run, in this process; declared runs are served as before."""
        self._passed_over.add(subject.of_run(profile.timesteps))

    def all(self) -> Iterator[tuple[Path, Profile | ProfileError]]:
        """Yield the folder and the profile of everything that is kept, oldest first; the error where it is damaged."""
        if self.folder is None or not self.folder.is_dir():
            return
        for place in sorted((each for each in self.folder.iterdir() if (each / FILE).exists()), key=_age):
            found: Profile | ProfileError
            try:
                found = read_profile(place / FILE)
            except ProfileError as error:
                found = error
            yield place, found

    def _read(self, place: Path) -> None:
        if not (place / FILE).exists():
            return
        try:
            self._known[place.name] = read_profile(place / FILE)
        except ProfileError as error:
            self._warn(f"a learned profile is damaged and is learned anew: {error}")

    def _write(self, target: Path, profile: Profile) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            save_profile(profile, beside / FILE)
            if target.exists():  # damaged, or older than this one
                os.replace(target, beside / "replaced")
            try:
                os.replace(beside, target)
            except OSError:
                if not (target / FILE).exists():  # else another process was first, and learned the same
                    raise
            shutil.rmtree(target / "replaced", ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, CacheWarning, stacklevel=2)


def _age(place: Path) -> float:
    with contextlib.suppress(OSError):
        return place.stat().st_mtime
    return 0.0
