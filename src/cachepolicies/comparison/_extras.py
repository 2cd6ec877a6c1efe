"""The packages that a comparison needs beyond the library's own."""

from __future__ import annotations

from importlib.util import find_spec

from cachepolicies.base.errors import NeedsError


def check_installed(*packages: str) -> None:
    """Check that optional packages can be imported, before anything is computed.

    Raises:
        NeedsError: one cannot.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise NeedsError(
            f"a comparison needs {', '.join(missing)}, not installed; install the extra `compare`, from a checkout "
            "pip install -c constraints.txt -e '.[compare]'"
        )
