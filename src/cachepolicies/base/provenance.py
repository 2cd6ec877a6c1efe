"""What a record was made with, and when."""

from __future__ import annotations

import contextlib
import datetime
import platform
from importlib import metadata


def versions_of(*distributions: str) -> dict[str, str]:
    """Return the versions of Python and of those distributions that are installed, name to version."""
    versions = {"python": platform.python_version()}
    for distribution in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):  # a source tree that is not installed has no metadata
            versions[distribution] = metadata.version(distribution)
    return versions


def utc_now() -> str:
    """Return the time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
