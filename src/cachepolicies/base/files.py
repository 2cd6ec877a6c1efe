"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

MOST_BYTES = 64 * 2**20
"""Largest file that is read: the tables of a thousand steps and eight samples have 61 MiB."""


def exists(path: Path) -> bool:
    """Return whether there is something at a path; nothing can be where the name itself is impossible."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; a NUL, or a character that no file name can have
        return False


def read_file(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read, is no regular file (a pipe would be waited for, a device has no end), or is larger
            than ``MOST_BYTES``.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError("no regular file")
            if found.st_size > MOST_BYTES:
                raise OSError(f"{found.st_size} bytes, of which at most {MOST_BYTES} are read")
            return file.read(MOST_BYTES + 1)
    except ValueError as error:  # a NUL, or a character that no file name can have
        raise OSError(f"no file has such a name: {error}") from error


def check_writable(path: Path) -> None:
    """Check that a file can be written, in a folder that may be still to make; nothing is left of the check.

    Raises:
        OSError: there can be no such file, or this user may not write there.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long, say
        folder = path.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except ValueError as error:  # a NUL, or a character that no file name can have
        raise OSError(f"no file has such a name: {error}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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
